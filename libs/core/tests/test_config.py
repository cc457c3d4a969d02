# SPDX-License-Identifier: Apache-2.0
import pytest
from enclavekit_core.config import MAX_CONFIG_BYTES, StrictConfig, load_config, parse_config
from enclavekit_core.errors import ConfigError


class Inner(StrictConfig):
    port: int = 1


class Sample(StrictConfig):
    name: str
    inner: Inner = Inner()
    tags: list[str] = []


def test_config_parses_into_its_type():
    value = parse_config(Sample, "name: x\ninner: {port: 7}\ntags: [a, b]\n", "f")
    assert value == Sample(name="x", inner=Inner(port=7), tags=["a", "b"])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "name"),
        ("name: x\nnmae: y\n", "nmae"),
        ("name: 5\n", "name"),
        ("name: x\ninner: {port: '7'}\n", "inner.port"),
        ("name: x\ninner: {prot: 7}\n", "inner"),
        ("name: x\nname: y\n", "line 2"),
        ("a: &a [x]\nb: *a\n", "alias"),
        ("name: [\n", "line"),
        ("- name\n", ""),
        ("!!python/object/apply:os.system ['true']\n", ""),
        ("\x00", ""),
    ],
)
def test_config_names_file_and_key(text, part):
    with pytest.raises(ConfigError) as caught:
        parse_config(Sample, text, "app.yaml")
    assert "app.yaml" in str(caught.value)
    assert part in str(caught.value)


def test_config_file_missing_or_too_large(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(Sample, str(tmp_path / "none.yaml"))
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="larger"):
        load_config(Sample, str(big))
