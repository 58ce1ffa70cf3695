"""Functions, basic blocks and loops of a disassembly in the format of `nvdisasm -c`, with -gi or without."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

ENDS = {"EXIT", "RET", "KILL"}
JUMPS = {"BRA", "JMP", "BRX", "JMX", "BRXU", "JMXU"}


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str
    # (file, line) of the source and of the calls it was inlined at, innermost first; empty without `nvdisasm -gi`.
    location: tuple[tuple[str, int], ...] = ()

    @cached_property
    def predicated(self) -> bool:
        return self.text.startswith("@")

    @cached_property
    def opcode(self) -> str:
        """The opcode with its modifiers, for example MUFU.EX2."""
        return self.text.split()[1 if self.predicated else 0]

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]


@dataclass
class Block:
    instructions: list[Instruction] = field(default_factory=list)
    successors: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Loop:
    header: int
    blocks: frozenset[int]  # blocks are numbered by address


class Function:
    """One function of a cubin. Blocks that its entry does not reach, for example subroutines, are in no loop."""

    def __init__(self, name: str, instructions: list[Instruction], labels: dict[str, int]):
        self.name, self.instructions, self._labels = name, instructions, labels
        self.blocks: list[Block] = []
        starts = set(labels.values())
        for i, instruction in enumerate(instructions):
            if i == 0 or instruction.address in starts or instructions[i - 1].base in JUMPS | ENDS | {"BSYNC"}:
                self.blocks.append(Block())
            self.blocks[-1].instructions.append(instruction)
        self._block_at = {block.instructions[0].address: i for i, block in enumerate(self.blocks)}
        self._link()

    def targets(self, instruction: Instruction) -> list[int]:
        """The blocks whose labels are among the operands."""
        names = re.findall(r"\.L_[\w.$]+", instruction.text)
        return [self._block_at[self._labels[name]] for name in names]

    def called(self, instruction: Instruction) -> int | None:
        """The first block of the subroutine that the instruction calls."""
        name = re.search(r"\$[\w.$]+", instruction.text) if instruction.base == "CALL" else None
        return self._block_at[self._labels[name[0]]] if name else None

    def _link(self) -> None:
        """A BSYNC jumps to the label in the BSSY of its barrier register, so a walk must keep track of these labels."""
        seen: set[tuple[int, frozenset]] = set()
        entries = {0} | {self.called(i) for i in self.instructions} - {None}
        pending: list[tuple[int, frozenset]] = [(entry, frozenset()) for entry in sorted(entries)]
        while pending:
            number, barriers = state = pending.pop()
            if state in seen or number >= len(self.blocks):
                continue
            seen.add(state)
            block, scopes = self.blocks[number], dict(barriers)
            for instruction in block.instructions:
                if instruction.base == "BSSY":
                    scopes[_barrier(instruction)] = self.targets(instruction)[0]
            last = block.instructions[-1]
            following = self._following(last, number, scopes)
            if last.base == "BSYNC":
                scopes.pop(_barrier(last), None)
            block.successors |= following
            pending += [(successor, frozenset(scopes.items())) for successor in following]

    def _following(self, last: Instruction, number: int, scopes: dict[str, int]) -> set[int]:
        falls_through = {number + 1} if number + 1 < len(self.blocks) else set()
        if last.base in ENDS:
            return falls_through if last.predicated else set()
        # BRA.DIV takes a slow path for the diverged lanes of a warp, which can exchange only when converged.
        if last.opcode.startswith("BRA.DIV"):
            return falls_through
        if last.base in JUMPS:
            targets = self.targets(last)
            if not targets:
                raise ValueError(f"{self.name}: no label in the jump {last.text!r} at {last.address:#x}")
            # The operands may include a second predicate: `BRA !P2, label`, `BRA.U UP0, label`.
            conditional = last.predicated or re.search(r"\s!?U?P\d\s*,", last.text)
            return set(targets) | (falls_through if conditional else set())
        if last.base == "BSYNC" and _barrier(last) in scopes:
            return {scopes[_barrier(last)]} | (falls_through if last.predicated else set())
        return falls_through

    @cached_property
    def reachable(self) -> set[int]:
        found, pending = {0}, [0]
        while pending:
            new = self.blocks[pending.pop()].successors - found
            found |= new
            pending += new
        return found

    @cached_property
    def dominators(self) -> dict[int, set[int]]:
        predecessors = self._predecessors
        dominators = {number: set(self.reachable) for number in self.reachable}
        dominators[0] = {0}
        changed = True
        while changed:
            changed = False
            for number in sorted(self.reachable - {0}):
                new = {number} | set.intersection(*(dominators[p] for p in predecessors[number]))
                if new != dominators[number]:
                    dominators[number], changed = new, True
        return dominators

    @cached_property
    def loops(self) -> list[Loop]:
        """The natural loops; back edges to one header make one loop."""
        bodies: dict[int, set[int]] = defaultdict(set)
        edges = ((number, successor) for number in self.reachable for successor in self.blocks[number].successors)
        for latch, header in edges:
            if header not in self.dominators[latch]:
                continue
            body, pending = bodies[header] | {header}, [latch]
            while pending:
                number = pending.pop()
                if number not in body:
                    body.add(number)
                    pending += self._predecessors[number]
            bodies[header] = body
        return [Loop(header, frozenset(body)) for header, body in sorted(bodies.items())]

    def within(self, loop: Loop) -> Iterator[Instruction]:
        for number in sorted(loop.blocks):
            yield from self.blocks[number].instructions

    @cached_property
    def _predecessors(self) -> dict[int, set[int]]:
        predecessors: dict[int, set[int]] = defaultdict(set)
        for number in self.reachable:
            for successor in self.blocks[number].successors:
                predecessors[successor].add(number)
        return predecessors


def parse(disassembly: str) -> list[Function]:
    """Parse the functions in the output of `nvdisasm -c`, which has a section .text.NAME for each."""
    functions = []
    for section in re.split(r"^\s*\.section\s+", disassembly, flags=re.MULTILINE)[1:]:
        name = re.match(r"\.text\.([^,\s]+)", section)
        if not name:
            continue
        instructions, labels, waiting = [], {}, []
        location, chain = (), []
        for line in section.splitlines():
            if label := re.match(r"(\.L_[\w.$]+|\$[\w.$]+):", line):
                waiting.append(label[1])
            elif place := re.match(r"\s*//## File \"([^\"]*)\", line (\d+)", line):
                chain.append((place[1].rpartition("/")[2], int(place[2])))
            elif code := re.match(r"\s+/\*([0-9a-f]+)\*/\s+(.*?)\s*;", line):
                if chain:
                    location, chain = tuple(chain), []
                instruction = Instruction(int(code[1], 16), code[2], location)
                labels.update(dict.fromkeys(waiting, instruction.address))
                waiting.clear()
                instructions.append(instruction)
        functions.append(Function(name[1], instructions, labels))
    return functions


def _barrier(instruction: Instruction) -> str:
    return re.search(r"\bB\d+\b", instruction.text)[0]
