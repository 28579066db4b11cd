"""Checkpoints: what comes back is what went in, and nothing else ever comes in."""

import contextlib
import errno
import io
import json
import os
import pickle
import resource
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mage_agent import AgentPolicy, MAGEModel, MAGEPolicy, checkpoint
from mage_agent.checkpoint import (
    FORMATS,
    CheckpointError,
    digest,
    load,
    load_tensors,
    save,
    save_tensors,
)
from tests.tiny import STATE, tiny_model

MEGABYTES = 50


@pytest.fixture
def model() -> MAGEModel:
    return tiny_model(return_expectile=0.9, candidates=2)


@pytest.fixture
def path(model: MAGEModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.mage"
    save(model, path)
    return path


def forge(path: Path, **changes: Any) -> None:
    """Write the file anew with another header; ``config`` is changed entry by entry."""
    tensors, header = load_tensors(path)
    config = changes.pop("config", {})
    changed = {**header["config"], **config} if isinstance(config, dict) else config
    text = json.dumps({**header, **changes, "config": changed})
    save_file(tensors, path, metadata={"format": FORMATS[-1], "header": text})


class TestRoundTrip:
    def test_the_model_acts_as_it_did(self, model: MAGEModel, path: Path) -> None:
        loaded, extra = load(path)
        assert extra == {}
        assert loaded.config == model.config
        assert not loaded.training
        state = model.state_dict()
        assert state.keys() == loaded.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        observation, target = torch.randn(5, STATE), torch.zeros(5)
        assert torch.equal(loaded.act(observation, target), model.act(observation, target))
        assert loaded.units.target_return == model.units.target_return
        assert loaded.units.return_to_go_range == model.units.return_to_go_range

    def test_the_loaded_model_can_be_trained_on(self, path: Path) -> None:
        loaded, _ = load(path)
        assert all(parameter.requires_grad for parameter in loaded.parameters())
        assert not any(tensor.is_meta for tensor in loaded.state_dict().values())

    def test_extra_values_and_versions_come_along(self, model: MAGEModel, tmp_path: Path) -> None:
        extra = {"spaces": [1, 2.5, None], "task": "pen"}
        save(model, tmp_path / "deep" / "er" / "model", extra)  # folders are made
        assert load(tmp_path / "deep" / "er" / "model")[1] == extra
        _, header = load_tensors(tmp_path / "deep" / "er" / "model")
        assert header["versions"] == checkpoint.versions()
        assert {"mage_agent", "torch", "torchrl", "python"} <= set(header["versions"])

    def test_paths_may_be_strings(self, model: MAGEModel, tmp_path: Path) -> None:
        save(model, str(tmp_path / "model"))
        load(str(tmp_path / "model"))

    def test_tensors_that_share_memory_are_saved_apart(self, tmp_path: Path) -> None:
        base = torch.arange(6.0)
        tensors = {"whole": base, "part": base[2:4], "turned": base.view(2, 3).T}
        save_tensors(tensors, tmp_path / "file", {})
        loaded, _ = load_tensors(tmp_path / "file")
        assert all(torch.equal(loaded[key], value) for key, value in tensors.items())

    def test_saving_twice_replaces(self, model: MAGEModel, path: Path) -> None:
        with torch.no_grad():
            model.encoder.position.zero_()
        save(model, path)
        assert not load(path)[0].encoder.position.any()
        assert [file.name for file in path.parent.iterdir()] == ["model.mage"]


class TestDamage:
    def test_no_file(self, tmp_path: Path) -> None:
        for missing in (tmp_path / "none", tmp_path):
            with pytest.raises(FileNotFoundError, match="no checkpoint at"):
                load(missing)

    @pytest.mark.parametrize("share", [0, 0.0001, 0.05, 0.5, 0.999])
    def test_truncated(self, path: Path, share: float) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match=r"model\.mage is damaged"):
            load(path)

    def test_extended(self, path: Path) -> None:
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)

    def test_any_flipped_byte_of_the_header_is_either_harmless_or_refused(self, path: Path) -> None:
        whole = path.read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        for place in torch.randint(8, 8 + length, (60,)).tolist():
            flipped = bytearray(whole)
            flipped[place] ^= 1 << (place % 7)
            path.write_bytes(bytes(flipped))
            with contextlib.suppress(CheckpointError):
                load(path)

    def test_foreign_files(self, path: Path) -> None:
        path.write_text("not a checkpoint")
        with pytest.raises(CheckpointError, match="damaged or no checkpoint of mage_agent"):
            load(path)
        save_file({"weight": torch.zeros(3)}, path)
        with pytest.raises(CheckpointError, match=r"its format is None, expected 'mage_agent/2'"):
            load(path)
        save_file({"weight": torch.zeros(3)}, path, metadata={"format": "mage_agent/99"})
        with pytest.raises(CheckpointError, match="'mage_agent/99'"):
            load(path)

    def test_a_pickle_is_refused_and_never_run(self, path: Path, tmp_path: Path) -> None:
        mark = tmp_path / "was_here"

        class Bomb:
            def __reduce__(self) -> Any:
                return Path.touch, (mark,)

        for payload in (pickle.dumps(Bomb()), None):
            if payload is None:
                torch.save({"model": Bomb()}, path)
            else:
                path.write_bytes(payload)
            with pytest.raises(CheckpointError):
                load(path)
        assert not mark.exists()

    def test_tensors_that_do_not_fit_are_named(self, path: Path) -> None:
        tensors, header = load_tensors(path)
        wrong = {
            "encoder.position: (2, 3)": {**tensors, "encoder.position": torch.zeros(2, 3)},
            "decoder.embed.bias: missing": {
                key: value for key, value in tensors.items() if key != "decoder.embed.bias"
            },
            "surprise: unknown": {**tensors, "surprise": torch.zeros(3)},
            "transformer.head.bias: (8, 8)": {
                **tensors,
                "transformer.head.bias": torch.zeros(8, 8),
            },
        }
        for message, changed in wrong.items():
            save_tensors(changed, path, header)
            name, _, shape = message.partition(": ")
            with pytest.raises(
                CheckpointError, match="does not fit its own configuration"
            ) as caught:
                load(path)
            assert name in str(caught.value)
            assert shape in str(caught.value)


HUGE = (10**7, 10**12, 10**18, 10**40)
CRAFTED: list[dict[str, Any]] = [
    *({"config": {name: size}} for name in ("codebook_size", "code_dim") for size in HUGE),
    *({"config": {"width": size, "num_heads": 1}} for size in HUGE),
    *({"config": {"num_blocks": size}} for size in HUGE),
    *({"config": {"num_autoencoder_blocks": size}} for size in HUGE),
    *({"config": {"horizon": 3 * size}} for size in HUGE),
    *({"config": {"horizon": 3 * size, "num_scales": size}} for size in HUGE),
    *({"sizes": {"observation_dim": {"observation": size}, "action_dim": 2}} for size in HUGE),
    *(
        {"sizes": {"observation_dim": {"observation": 3}, "action_dim": size}}
        for size in (-1, 0, 1.5, "3", None, [1], True, float("nan"))
    ),
    *({"sizes": other} for other in (None, 5, [], {}, {"observation_dim": 3}, {"colour": 3})),
    *({"config": other} for other in (None, 5, [], ["horizon"], "horizon", [["horizon", 3]])),
    *({"config": {"horizon": value}} for value in (None, "24", 24.0, [], {})),
    *({"config": {"num_blocks": value}} for value in (None, "2", [], {})),
    *({"config": {"return_conditioning": value}} for value in (5, ["x"], [["autoencoder"]])),
    {"config": {"observation_keys": [1]}},
    {"config": {"trajectory": {}}},
    {"config": {"backdoor": True}},
    *({"method": method} for method in (None, 5, [], "surprise")),
]


class TestCraftedHeaders:
    @pytest.mark.parametrize("changes", CRAFTED, ids=lambda changes: str(changes)[:60])
    def test_are_refused_at_once(self, path: Path, changes: dict[str, Any]) -> None:
        load(path)  # what is measured is not the first import of something
        forge(path, **changes)
        memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        with pytest.raises(CheckpointError, match=r"model\.mage"):
            load(path)
        assert time.process_time() - start < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEGABYTES * 1024

    @pytest.mark.parametrize(
        "text", ["", "[]", "3", "null", "{", "[" * 100_000, "1" * 5000, "{}", '{"config": {}}']
    )
    def test_text_that_is_no_header_is_refused(self, path: Path, text: str) -> None:
        tensors, _ = load_tensors(path)
        save_file(tensors, path, metadata={"format": FORMATS[-1], "header": text})
        with pytest.raises(CheckpointError, match=r"model\.mage"):
            load(path)

    def test_a_length_beyond_the_file_is_refused(self, path: Path) -> None:
        whole = path.read_bytes()
        for length in (2**20, 2**40, 2**63 - 1, 2**64 - 1):
            path.write_bytes(struct.pack("<Q", length) + whole[8:])
            with pytest.raises(CheckpointError, match="damaged"):
                load(path)

    def test_extra_values_of_another_kind_are_left_out(self, path: Path) -> None:
        forge(path, extra=[1, 2])
        assert load(path)[1] == {}


class TestMethods:
    def test_a_method_that_nobody_defines_is_named_with_those_that_are(self, path: Path) -> None:
        forge(path, method="dreamer", module="my_agents")
        with pytest.raises(CheckpointError, match=r"'dreamer'; known: .*'mage'.*module my_agents"):
            load(path)

    def test_an_open_file_will_do(self, model: MAGEModel, tmp_path: Path) -> None:
        with (tmp_path / "file").open("wb") as file:
            save(model, file, {"note": 1})
        with (tmp_path / "file").open("rb") as file:
            loaded, extra = load(file)
        assert extra == {"note": 1}
        assert loaded.config == model.config
        assert loaded.config == load(tmp_path / "file")[0].config  # what is written is the same
        buffer = io.BytesIO()
        AgentPolicy(model).save(buffer)
        buffer.seek(0)
        policy = AgentPolicy.load(buffer)
        assert policy.model.config == model.config
        assert type(policy) is MAGEPolicy  # which has what this agent's policies have


class TestDigest:
    def test_a_changed_weight_is_noticed(self, path: Path) -> None:
        whole = path.read_bytes()
        start = 8 + struct.unpack("<Q", whole[:8])[0]
        for place in (start, (start + len(whole)) // 2, len(whole) - 1):
            changed = bytearray(whole)
            changed[place] ^= 1
            path.write_bytes(bytes(changed))
            with pytest.raises(CheckpointError, match=r"model\.mage is damaged: its contents"):
                load(path)

    def test_so_is_a_changed_setting(self, path: Path) -> None:
        whole = path.read_bytes()
        assert whole.count(b'\\"discount\\": 0.99') == 1
        path.write_bytes(whole.replace(b'\\"discount\\": 0.99', b'\\"discount\\": 0.98'))
        with pytest.raises(CheckpointError, match="its contents are not those"):
            load(path)

    def test_files_without_one_are_read(self, path: Path) -> None:
        tensors, header = load_tensors(path)
        save_file(tensors, path, metadata={"format": FORMATS[-1], "header": json.dumps(header)})
        load(path)

    def test_tells_values_names_types_and_shapes_apart(self) -> None:
        zeros = torch.zeros(4)
        digests = {
            digest(tensors, text)
            for tensors, text in (
                ({"a": zeros}, ""),
                ({"a": zeros}, "text"),
                ({"b": zeros}, ""),
                ({"a": zeros.view(2, 2)}, ""),
                ({"a": zeros.int()}, ""),
                ({"a": -zeros}, ""),
                ({}, ""),
            )
        }
        assert len(digests) == 7
        assert digest({"a": zeros[::2], "b": zeros}) == digest({"b": zeros, "a": zeros[:2].clone()})


class TestAtomicity:
    def test_what_a_killed_writer_left_is_cleared_away(self, model: MAGEModel, path: Path) -> None:
        others = [path.with_name(name) for name in (".other.mage.1a2b.part", "model.mage.part")]
        left = path.with_name(".model.mage.1a2b.part")
        for file in (left, *others):
            file.write_bytes(b"half")
        save(model, path)
        assert set(path.parent.iterdir()) == {path, *others}

    def test_others_may_read_what_their_umask_lets_them(self, model: MAGEModel, path: Path) -> None:
        before = os.umask(0o027)
        try:
            save(model, path)
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o640

    def test_a_failing_write_leaves_the_old_file_and_nothing_else(
        self, model: MAGEModel, path: Path
    ) -> None:
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        try:
            with pytest.raises(OSError, match=r"cannot write .*model\.mage: .* is untouched"):
                save(model, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    def test_so_does_a_full_disk(
        self, model: MAGEModel, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = path.read_bytes()
        monkeypatch.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(OSError, match=r"model\.mage: No space left on device") as caught:
            save(model, path)
        assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    def test_so_does_an_interrupt(
        self, model: MAGEModel, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        before = path.read_bytes()
        monkeypatch.setattr(checkpoint.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(model, path)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    def test_a_folder_that_cannot_be_made(self, model: MAGEModel, path: Path) -> None:
        with pytest.raises(OSError, match=r"model\.mage"):
            save(model, path / "below" / "a_file")

    def test_a_header_that_is_no_json_leaves_the_old_file(
        self, model: MAGEModel, path: Path
    ) -> None:
        before = path.read_bytes()
        with pytest.raises(TypeError, match="not JSON serializable"):
            save(model, path, extra={"tensor": torch.zeros(3)})
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
