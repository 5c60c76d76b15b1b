"""`curate compare` as a job: python jobs/compare.py --config CONFIG [key=value …]

ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/compare.py --config …
"""

from _job import run

if __name__ == "__main__":
    run("compare")
