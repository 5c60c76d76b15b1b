"""`curate run` as a job: python jobs/curate.py --config CONFIG [key=value …] [--fresh]

ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/curate.py --config …
"""

from _job import run

if __name__ == "__main__":
    run("run")
