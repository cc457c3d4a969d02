# SPDX-License-Identifier: Apache-2.0
"""Random things that programs do to a tree: `churn.py TREE OUTSIDE SEED COUNT`, one line on stdout for each.

Several of these run at once on the same names. What fails because another was quicker is passed over.
"""

import mmap
import os
import random
import shutil
import subprocess
import sys

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}


class Churn:
    def __init__(self, tree, outside, seed):
        self.tree, self.outside, self.seed = tree, outside, seed
        self.chosen = random.Random(seed)
        self.count = 0

    def path(self, top=None):
        names = (self.chosen.choice("abcd") for _ in range(self.chosen.randint(1, 4)))
        return os.path.join(top or self.tree, *names)

    def content(self):
        return self.chosen.randbytes(self.chosen.choice([0, 1, 100, 5000, 200_000]))

    def fresh(self):
        self.count += 1
        return os.path.join(self.outside, f"{self.seed}-{self.count}")

    def create(self):
        with open(self.path(), "wb") as out:
            for _ in range(self.chosen.randint(1, 4)):
                out.write(self.content())
                out.flush()

    def append(self):
        with open(self.path(), "ab") as out:
            out.write(self.content())

    def overwrite(self):
        with open(self.path(), "r+b") as out:
            out.seek(self.chosen.randint(0, 100))
            out.write(self.content())

    def truncate(self):
        os.truncate(self.path(), self.chosen.randint(0, 200))

    def map(self):
        with open(self.path(), "r+b") as out:
            mapping = mmap.mmap(out.fileno(), 0)
        value = self.chosen.randbytes(1)
        child = os.fork()
        if not child:
            try:
                mapping[:1] = value  # SIGBUS if another has emptied the file meanwhile: the end of this process only
            finally:
                os._exit(0)
        mapping.close()
        os.waitpid(child, 0)

    def rename(self):
        os.rename(self.path(), self.path())

    def exchange_type(self):
        path = self.path()
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        self.chosen.choice([os.mkdir, lambda name: os.symlink("a", name)])(path)

    def link(self):
        os.link(self.path(), self.path())

    def delete(self):
        os.unlink(self.path())

    def delete_tree(self):
        shutil.rmtree(self.path(), ignore_errors=True)

    def make_directories(self):
        os.makedirs(self.path(), exist_ok=True)

    def move_out(self):
        os.rename(self.path(), self.fresh())

    def move_in(self):
        own = [name for name in os.listdir(self.outside) if name.startswith(f"{self.seed}-")]
        os.rename(os.path.join(self.outside, self.chosen.choice(own)), self.path())

    def attributes(self):
        os.chmod(self.path(), self.chosen.choice([0o600, 0o644, 0o755]))
        os.utime(self.path())

    def copy_tree(self):
        subprocess.run(["cp", "-r", self.path(), self.path()], **QUIET)

    def unpack(self):
        archive = self.fresh()
        subprocess.run(["tar", "cf", archive, "-C", self.tree, self.chosen.choice("abcd")], **QUIET)
        target = self.path()
        os.makedirs(target, exist_ok=True)
        subprocess.run(["tar", "xf", archive, "-C", target], **QUIET)

    def clone(self):
        repository = os.path.join(self.outside, f"repository{self.seed}")
        if not os.path.exists(repository):
            subprocess.run(["git", "init", "-q", repository], **QUIET)
            for name in ("one", "two"):
                with open(os.path.join(repository, name), "wb") as out:
                    out.write(self.content())
            author = ["-c", "user.name=a", "-c", "user.email=a@b"]
            subprocess.run(["git", "-C", repository, "add", "."], **QUIET)
            subprocess.run(["git", "-C", repository, *author, "commit", "-qm", "x"], **QUIET)
        target = self.path()
        os.makedirs(os.path.dirname(target), exist_ok=True)
        subprocess.run(["git", "clone", "-q", repository, target], **QUIET)

    def save_as_editors_do(self):
        """Write beside and rename over; or move the old one aside first, then write and delete the backup."""
        path = self.path()
        if self.chosen.random() < 0.5:
            with open(f"{path}.new", "wb") as out:
                out.write(self.content())
                os.fsync(out.fileno())
            os.replace(f"{path}.new", path)
        else:
            os.rename(path, f"{path}~")
            with open(path, "wb") as out:
                out.write(self.content())
            os.unlink(f"{path}~")

    def one(self):
        cheap = [self.create, self.append, self.overwrite, self.truncate, self.map, self.rename, self.link, self.delete]
        cheap += [self.delete_tree, self.make_directories, self.move_out, self.move_in, self.attributes]
        cheap += [self.save_as_editors_do, self.exchange_type]
        dear = [self.copy_tree, self.unpack, self.clone]
        step = self.chosen.choice(cheap * 4 + dear)
        try:
            step()
        except (OSError, ValueError, IndexError, shutil.Error):  # ValueError: a file without content cannot be mapped
            return "-"
        return step.__name__


def main():
    tree, outside, seed, count = sys.argv[1:]
    churn = Churn(tree, outside, int(seed))
    for _ in range(int(count)):
        print(churn.one(), flush=True)


main()
