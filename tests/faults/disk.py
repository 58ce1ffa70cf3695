"""The possible contents of a folder after a power cut, with only the guarantees of POSIX.

A file's bytes are safe after fsync of the file, a name after fsync of its folder. Each unsynced name, and each file's
unsynced bytes, may be lost or kept independently.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tracer import Call

Tree = dict[str, "bytes | None"]  # relative path -> content; None for a folder
MIXTURES = 2


@dataclass
class Disk:
    """Follows a folder from one system call to the next. Files and folders are numbered as they appear, because the
    system reuses the inode of a removed file while the disk may still have its name.

    Attributes:
        root: the folder; its initial contents are on the disk.
        contents: bytes of each file on the disk, by file number.
        names: {name: number} of each folder on the disk, by folder number.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng, self.count, self.numbers = random.Random(0), 0, {}
        self._update()
        self.contents, self.names = dict(self.now_contents), {k: dict(v) for k, v in self.now_names.items()}

    def _update(self) -> None:
        """Read the present contents of the folder."""
        before, self.numbers = self.numbers, {}
        self.now_contents: dict[int, bytes] = {}
        self.now_names: dict[int, dict[str, int]] = {}
        for folder, _, _ in os.walk(self.root):
            entries = self.now_names[self._number(os.stat(folder).st_ino, before)] = {}
            for entry in os.scandir(folder):
                entries[entry.name] = number = self._number(entry.inode(), before)
                if entry.is_file(follow_symlinks=False):
                    self.now_contents[number] = Path(entry.path).read_bytes()

    def _number(self, inode: int, before: dict[int, int]) -> int:
        if inode not in self.numbers:
            self.count += 1
            self.numbers[inode] = before.get(inode, self.count)
        return self.numbers[inode]

    def before(self, call: Call) -> Iterator[tuple[str, Tree]]:
        """(label, tree) of what may be left by a kill or a power cut before the call, and by a kill during a write."""
        self._update()
        contents, names = self.now_contents, self.now_names
        yield "killed", self._tree(names, contents)
        if len(call.content) > 1:
            number, half = self.numbers[os.stat(call.paths[0]).st_ino], call.content[: len(call.content) // 2]
            old = contents[number].ljust(call.offset, b"\0")
            torn = old[: call.offset] + half + old[call.offset + len(half) :]
            yield "killed in the middle of a write", self._tree(names, {**contents, number: torn})
        yield "power cut, nothing more on the disk", self._tree(self.names, self.contents)
        yield "power cut, names on the disk", self._tree(names, self.contents)
        yield "power cut, contents on the disk", self._tree(self.names, {**self.contents, **contents})
        for _ in range(MIXTURES):
            yield "power cut, some of both on the disk", self._mixture()
        if call.name in ("fsync", "fdatasync"):
            number = self.numbers[os.stat(call.paths[0]).st_ino]
            if number in names:
                self.names[number] = dict(names[number])
            else:
                self.contents[number] = contents[number]

    def _mixture(self) -> Tree:
        names: dict[int, dict[str, int]] = {}
        for folder in {**self.names, **self.now_names}:
            old, new = self.names.get(folder, {}), self.now_names.get(folder, {})
            chosen = {name: self.rng.choice([old.get(name), new.get(name)]) for name in {**old, **new}}
            names[folder] = {name: number for name, number in chosen.items() if number is not None}
        contents = {}
        for number in {**self.contents, **self.now_contents}:
            old_bytes = self.contents.get(number, b"")
            new_bytes = self.now_contents.get(number, old_bytes)  # no name now: its bytes are unchanged
            part = new_bytes[: self.rng.randint(len(old_bytes), max(len(old_bytes), len(new_bytes)))]
            contents[number] = self.rng.choice([old_bytes, new_bytes, part])
        return self._tree(names, contents)

    def _tree(self, names: dict[int, dict[str, int]], contents: dict[int, bytes]) -> Tree:
        tree: Tree = {}
        folders = {**self.names, **self.now_names}

        def walk(number: int, path: str) -> None:
            for name, entry in names.get(number, {}).items():
                below = f"{path}{name}"
                if entry in folders:
                    tree[below] = None
                    walk(entry, f"{below}/")
                else:
                    tree[below] = contents.get(entry, b"")

        walk(self.numbers[os.stat(self.root).st_ino], "")
        return tree


def write_tree(tree: Tree, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in sorted(tree):
        if (content := tree[name]) is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)
