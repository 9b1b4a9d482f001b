"""One of the processes of `--nproc`: reads the job, trains, leaves the report for the launcher."""

from __future__ import annotations

import pickle
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path


def main(job_path: str, report_path: str) -> None:
    """Run the pickled `TrainJob` (written by our own parent a moment ago, so it can be trusted)."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch is imported ends without a traceback
    from compress.files import written_beside
    from compress.pipeline.train import TrainJob, run_job
    from compress.progress import set_quiet
    from compress.training.launching import reporting_failure

    with reporting_failure():
        job: TrainJob = pickle.loads(Path(job_path).read_bytes())
        set_quiet(job.settings.quiet)
        if not job.settings.verbose:
            warnings.filterwarnings("ignore")
        report = run_job(job)
        if report is not None:
            # Without the modules: their classes may live in the user's file, which the launcher has not imported.
            steps = tuple(replace(step, model=None) for step in report.steps)
            with written_beside(report_path) as beside:
                beside.write_bytes(pickle.dumps(replace(report, steps=steps)))


if __name__ == "__main__":
    main(*sys.argv[1:])
