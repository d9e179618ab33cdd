"""For tests of jobs that start processes: run one, break it, see what is left of it."""

from lwpd_lightning.testing.job import HungJob, Job, JobResult

__all__ = ["HungJob", "Job", "JobResult"]
