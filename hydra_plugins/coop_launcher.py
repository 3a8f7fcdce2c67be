"""The launcher of studies: Hydra takes launchers from the package `hydra_plugins` alone."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, open_dict


class GpuLauncher(BasicLauncher):
    """One run on each GPU at a time; with one GPU or none Hydra's own, one run after the other in this process."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from coop.cli import gpus

        runs = list(enumerate(map(list, job_overrides), initial_job_idx))
        # Composing a config takes as long as looking at a finished run: only with several GPUs is every one looked at.
        several = len(runs) > 1 and gpus.wants_one_gpu(self._config(runs[0][1], initial_job_idx))
        found = gpus.visible_gpus() if several else []
        jobs = [gpus.Job(number, words, self._config(words, number)) for number, words in runs if len(found) > 1]
        if not jobs or not all(gpus.wants_one_gpu(job.config) for job in jobs):
            return super().launch(job_overrides, initial_job_idx)
        return gpus.Pool(found, self._run).run(jobs)

    def _config(self, overrides: list[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def _run(self, job) -> JobReturn:
        return super().launch([job.overrides], job.number)[0]
