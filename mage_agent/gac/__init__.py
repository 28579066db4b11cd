"""GAC: generative actor critic, a model of trajectories and returns that decides by inference."""
