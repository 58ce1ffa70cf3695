"""What may be found in a folder after a power cut, by what POSIX promises and no more.

A file's bytes are safe after fsync of the file, a name after fsync of its folder. Of what was not synced anything may
be lost or kept, each name and each file's bytes on their own.
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
    """Follows a folder from one system call to the next.

    Attributes:
        root: the folder; what is in it at first is on the disk.
        contents: bytes of each file as they are on the disk, by inode.
        names: {name: inode} of each folder as they are on the disk, by inode.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now_contents, self.now_names = self._look()
        self.contents, self.names = dict(self.now_contents), {k: dict(v) for k, v in self.now_names.items()}
        self.dice = random.Random(0)

    def _look(self) -> tuple[dict[int, bytes], dict[int, dict[str, int]]]:
        contents, names = {}, {}
        for folder, _, _ in os.walk(self.root):
            entries = names[os.stat(folder).st_ino] = {}
            for entry in os.scandir(folder):
                entries[entry.name] = entry.inode()
                if entry.is_file(follow_symlinks=False):
                    contents[entry.inode()] = Path(entry.path).read_bytes()
        return contents, names

    def before(self, call: Call) -> Iterator[tuple[str, Tree]]:
        """What a kill and what a power cut before the call would leave, and a kill in the middle of a write; each with
        a word for it."""
        contents, names = self._look()
        for known in (self.contents, self.names):  # an inode that was given away begins anew
            for inode in [i for i in known if i not in self.now_contents and i not in self.now_names]:
                if inode in contents or inode in names:
                    del known[inode]
        self.now_contents, self.now_names = contents, names
        yield "killed", self._tree(names, contents)
        if len(call.content) > 1:
            inode, half = os.stat(call.paths[0]).st_ino, call.content[: len(call.content) // 2]
            old = contents[inode].ljust(call.offset, b"\0")
            torn = old[: call.offset] + half + old[call.offset + len(half) :]
            yield "killed in the middle of a write", self._tree(names, {**contents, inode: torn})
        yield "power cut, nothing more on the disk", self._tree(self.names, self.contents)
        yield "power cut, names on the disk", self._tree(names, self.contents)
        yield "power cut, contents on the disk", self._tree(self.names, {**self.contents, **contents})
        for _ in range(MIXTURES):
            yield "power cut, some of both on the disk", self._mixture()
        if call.name in ("fsync", "fdatasync"):
            inode = os.stat(call.paths[0]).st_ino
            if inode in names:
                self.names[inode] = dict(names[inode])
            else:
                self.contents[inode] = contents[inode]

    def _mixture(self) -> Tree:
        names: dict[int, dict[str, int]] = {}
        for folder in {**self.names, **self.now_names}:
            old, new = self.names.get(folder, {}), self.now_names.get(folder, {})
            chosen = {name: self.dice.choice([old.get(name), new.get(name)]) for name in {**old, **new}}
            names[folder] = {name: inode for name, inode in chosen.items() if inode is not None}
        contents = {}
        for inode in {**self.contents, **self.now_contents}:
            old_bytes, new_bytes = self.contents.get(inode, b""), self.now_contents.get(inode, b"")
            part = new_bytes[: self.dice.randint(len(old_bytes), max(len(old_bytes), len(new_bytes)))]
            contents[inode] = self.dice.choice([old_bytes, new_bytes, part])
        return self._tree(names, contents)

    def _tree(self, names: dict[int, dict[str, int]], contents: dict[int, bytes]) -> Tree:
        tree: Tree = {}
        folders = {**self.names, **self.now_names}

        def walk(inode: int, path: str) -> None:
            for name, entry in names.get(inode, {}).items():
                below = f"{path}{name}"
                if entry in folders:
                    tree[below] = None
                    walk(entry, f"{below}/")
                else:
                    tree[below] = contents.get(entry, b"")

        walk(os.stat(self.root).st_ino, "")
        return tree


def write_tree(tree: Tree, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in sorted(tree):
        if (content := tree[name]) is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)
