"""How coop.train and coop.evaluate start under Hydra."""

import logging
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig

from coop.cli.checks import CHECKS, check_one_run
from coop.cli.command import exit_code, main_of
from coop.cli.messages import explain
from coop.cli.overrides import as_overrides
from coop.config import conf_dir
from coop.runs.sweep import in_sweep, run_setting
from coop.system import stop
from coop.system.memory import keep_freed_memory

# Hydra prints exceptions itself, as shortened tracebacks; here they come to `explain`.
hydra._internal.utils.run_and_report = lambda call: call()
# It composes the whole config to ask it for hydra.mode, and then again for the run: needless where no word sets it.
composed_mode = Hydra.get_mode
Hydra.get_mode = lambda self, config_name, overrides: (
    composed_mode(self, config_name, overrides) if any("hydra.mode=" in word for word in overrides) else None
)


def one_of_each(batch: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """As many runs of a study as have every `key=value` once."""
    seen: set[str] = set()
    return [words for words in batch if not seen.issuperset(words) and not seen.update(words)]


# Hydra composes the config of every run before the first, to see that it can; a misspelt value shows in one of these.
check_batch = Sweeper.validate_batch_is_legal
Sweeper.validate_batch_is_legal = lambda self, batch: check_batch(self, one_of_each(batch))

# Hydra's script completes `python FILE.py`; this one `python -m coop.train` and coop.evaluate, in bash and zsh.
COMPLETION = """export _HYDRA_OLD_COMP=$(complete -p python 2> /dev/null)
hydra_bash_completion()
{
    words=($COMP_LINE)
    COMPREPLY=()
    case "${words[1]} ${words[2]}" in "-m coop.train"|"-m coop.evaluate") ;; *) return ;; esac
    choices=$(COMP_LINE="${words[2]}${COMP_LINE#*${words[2]}}" ${words[0]} -m ${words[2]} -sc query=bash 2> /dev/null)
    COMPREPLY=($(compgen -o nospace -o default -W "$choices" -- "${COMP_LINE##* }"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F hydra_bash_completion python python3"""


def run_with_hydra(command: str) -> None:
    """Run coop.train or coop.evaluate, and exit. Its module is imported once its config has been checked.

    So --help, completion and most mistakes are answered before torch is there.
    """

    def task(cfg: DictConfig) -> float | None:
        CHECKS[command](cfg)
        return main_of(command)(cfg)

    launch(task, command)
    sys.exit()


def launch(task: Callable[[DictConfig], float | None], config_name: str) -> None:
    """Run a task under Hydra; what the user can fix ends as one message and exit code 1."""
    keep_freed_memory()
    logging.raiseExceptions = False  # a log file on a full disk; what matters is said when a result is written

    def job(cfg: DictConfig) -> float | None:
        if not stop.active():  # in a process that a launcher has started
            with stop.stoppable("the sweep's command resumes this run"):
                return job(cfg)
        if in_sweep():
            return run_setting(task, cfg, explain)
        check_one_run(HydraConfig.get(), config_name, "add -m to run all of them")
        return task(cfg)

    def start(words: list[str]) -> None:
        if {"-sc", "--shell-completion"} & set(words) and "install=bash" in words:
            return print(COMPLETION)
        sys.argv[1:] = as_overrides(words)
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job)()

    if code := exit_code(start, sys.argv[1:]):
        sys.exit(code)
