"""What an experiment says of launching its trainings, and the files of accelerate that we ship."""

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from fuseval.config import ConfigError
from fuseval.experiment import Accelerate
from fuseval.launching import launch_of, processes_of
from tests.fuseval.test_examples import EXAMPLES

SHIPPED = {"cpu": ("MULTI_GPU", 2), "single-gpu": ("NO", 1), "fsdp2": ("FSDP", 8), "deepspeed-zero3": ("DEEPSPEED", 8)}


def config(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    return Accelerate(config="config.yaml")


@pytest.mark.parametrize("name", SHIPPED)
def test_accelerate_reads_the_files_that_we_ship(name):
    file = EXAMPLES / "accelerate" / f"{name}.yaml"
    read = load_config_from_file(str(file))
    assert isinstance(read, ClusterConfig)
    assert (read.distributed_type.value, read.num_processes) == SHIPPED[name]
    assert processes_of(Accelerate(config=str(file)), beside=EXAMPLES) == SHIPPED[name][1]


def test_a_launch_lies_beside_its_target(tmp_path):
    given = config(tmp_path, "num_processes: 3").model_copy(update={"through": ["srun"], "arguments": ["--debug"]})
    launch = launch_of(given, beside=tmp_path, target=tmp_path / "fused-1")
    assert launch.folder == tmp_path / "fused-1.launch" and launch.processes == 3
    command = launch.command(launch.folder / "job.json")
    assert command[0] == "srun" and command[-4:-1] == ["--debug", "-m", "fusion.launched"]
    assert launch_of(None, beside=tmp_path, target=tmp_path) is None and processes_of(None, beside=tmp_path) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num_processes", "16"],
        ["--num-processes=16"],
        ["--debug", "--num_processes=16"],
        ["--num-processes=2", "--num_processes", "16"],
    ],
)
def test_arguments_count_more_than_the_file(tmp_path, arguments):
    given = config(tmp_path, "num_processes: 3").model_copy(update={"arguments": arguments})
    assert processes_of(given, beside=tmp_path) == 16


@pytest.mark.parametrize("text", ["num_machines: 2", "num_processes: 0", "num_processes: many", "num_processes: -1"])
def test_the_number_of_processes_must_be_known_for_it_decides_the_batch(tmp_path, text):
    with pytest.raises(ConfigError, match=r"num_processes of .*config.yaml is .*--num_processes"):
        processes_of(config(tmp_path, text), beside=tmp_path)
