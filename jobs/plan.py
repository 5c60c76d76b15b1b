"""`curate plan` as a job: python jobs/plan.py --config CONFIG [key=value …]"""

from _job import run

if __name__ == "__main__":
    run("plan")
