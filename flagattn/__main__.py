"""`python -m flagattn`: versions, libraries, CPU level, CUDA archs, and what is off and why."""

from flagattn.build_info import build_info

if __name__ == "__main__":
    print(build_info())
