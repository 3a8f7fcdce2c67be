"""The launcher of studies: Hydra takes launchers from the package `hydra_plugins` alone."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, open_dict


class GpuLauncher(BasicLauncher):
    """One run on each GPU at a time; with one GPU or none Hydra's own, one run after the other in this process."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from coop.cli import gpus

        jobs = [
            gpus.Job(number, list(words), self._config(list(words), number))
            for number, words in enumerate(job_overrides, initial_job_idx)
        ]
        found = gpus.visible_gpus() if len(jobs) > 1 and all(gpus.wants_one_gpu(job.config) for job in jobs) else []
        if len(found) < 2:
            return super().launch(job_overrides, initial_job_idx)
        return gpus.Pool(found, self._run).run(jobs)

    def _config(self, overrides: list[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def _run(self, job) -> JobReturn:
        return super().launch([job.overrides], job.number)[0]
