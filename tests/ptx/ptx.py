"""Parser for PTX from nvcc and Triton: kernels, basic blocks and instructions (PTX ISA 9.0)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# Source of an instruction: its (file, line) and those of the calls it was inlined at, innermost first.
Location = tuple[tuple[str, int], ...]


class Unsupported(Exception):
    """Unknown PTX; the message names it, with its kernel and line."""


@dataclass(frozen=True)
class Instruction:
    line: int                    # of the PTX
    guard: str                   # "%p1", "!%p1" or ""
    opcode: str                  # "ld.shared.v4.f32"
    operands: tuple[str, ...]    # "[%rd1+4]", "{%r1, %r2}", "%f1", "0f3F800000"
    location: Location

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def ends_block(self) -> bool:
        return self.base in ("bra", "ret", "exit")

    @property
    def follows(self) -> bool:
        """Whether execution may continue with the next instruction."""
        return not self.ends_block or bool(self.guard)


@dataclass
class Block:
    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True)
class Parameter:
    name: str
    offset: int
    size: int


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter]
    most_threads: int
    shared: dict[str, int]       # offsets of arrays in shared memory; the unsized one is last
    static_shared: int           # bytes of the sized arrays
    registers: dict[str, str] = field(default_factory=dict)  # name: type
    blocks: list[Block] = field(default_factory=list)

    @property
    def instructions(self) -> Iterator[Instruction]:
        for block in self.blocks:
            yield from block.instructions

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.size for p in self.parameters), default=0)


_ENTRY = re.compile(r"\.entry\s+([\w$.]+)\s*(?:\(([^)]*)\))?([^{;]*)\{")
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.b(\d+)\s+([\w$.]+)(?:\[(\d*)\])?;")
_STATEMENT = re.compile(
    r"""\s*(?:
        (?P<label>[\w$.]+):                                        # a label
      | (?P<open>\{)
      | (?P<close>\})
      | (?P<location>\.loc\s[^\n]*)
      | (?P<pragma>\.pragma\s[^;]*;)
      | \.reg\s+\.(?P<type>\w+)\s+(?P<names>[^;]*);
      | (?:@(?P<guard>!?[%\w$.]+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>[^;]*);
    )""",
    re.VERBOSE,
)


def parse(text: str) -> list[Kernel]:
    """The kernels of a PTX module, in the order of their definitions."""
    code = re.sub(r"//[^\n]*", "", text)
    numbered = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.MULTILINE)
    files = {int(number): name.rpartition("/")[2] for number, name in numbered}
    kernels = []
    for entry in _ENTRY.finditer(code):
        end = _closing_brace(code, entry.end())
        threads = re.search(r"\.(?:max|req)ntid\s+(\d+)", entry[3])
        body = code[entry.end():end]
        shared, static = _shared_arrays(body, code)
        kernel = Kernel(entry[1], _parameters(entry[2] or ""), int(threads[1]) if threads else 1024, shared, static)
        body = _SHARED.sub(lambda m: " " * len(m[0]), body)
        _read_body(kernel, body, code.count("\n", 0, entry.end()) + 1, files)
        kernels.append(kernel)
    return kernels


def _closing_brace(code: str, start: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(code, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise Unsupported("a kernel without an end")


def _parameters(text: str) -> list[Parameter]:
    found, used = [], 0
    for declared in filter(None, (p.strip() for p in text.split(","))):
        array = re.fullmatch(r"\.param\s+\.align\s+(\d+)\s+\.b8\s+([\w$.]+)\[(\d+)\]", declared)
        scalar = re.fullmatch(r"\.param\s+\.\w*?(\d+)\s+(?:\.ptr\b.*\s)?([\w$.]+)", declared)
        if array:
            alignment, name, size = int(array[1]), array[2], int(array[3])
        elif scalar:
            size, name = int(scalar[1]) // 8, scalar[2]
            alignment = size
        else:
            raise Unsupported(f"the parameter {declared!r}")
        used = (used + alignment - 1) // alignment * alignment
        found.append(Parameter(name, used, size))
        used += size
    return found


def _shared_arrays(body: str, module: str) -> tuple[dict[str, int], int]:
    """The module's shared arrays that the body names, and the body's own."""
    places, used, dynamic = {}, 0, []
    for alignment, bits, name, length in _SHARED.findall(module):
        if not re.search(rf"(?<![\w$.]){re.escape(name)}(?![\w$.])", body):
            continue
        if length == "" and f"{name}[" in module:
            dynamic.append(name)
            continue
        step = int(alignment or 1)
        used = (used + step - 1) // step * step
        places[name] = used
        used += int(bits) // 8 * int(length or 1)
    used = (used + 15) // 16 * 16
    return {**places, **dict.fromkeys(dynamic, used)}, used


def _operands(text: str) -> tuple[str, ...]:
    """Split at commas outside braces and brackets."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text)
    return tuple(part.strip() for part in parts)


def _read_body(kernel: Kernel, body: str, line: int, files: dict[int, str]) -> None:
    location: Location = ()
    known: dict[tuple[str, ...], Location] = {}
    scopes: list[dict[str, str]] = [{}]
    number_of_scopes, at = 0, 0
    block = Block()
    kernel.blocks.append(block)
    end = len(body.rstrip())
    while at < end:
        statement = _STATEMENT.match(body, at)
        if not statement:
            raise Unsupported(f"{kernel.name}: line {line}: {body[at:at + 80].strip()!r}")
        here = line + body.count("\n", at, statement.end() - len(statement[0].lstrip()))
        line += body.count("\n", at, statement.end())
        at = statement.end()

        def scoped(text: str) -> str:
            for scope in scopes[1:]:
                for name, renamed in scope.items():
                    text = re.sub(rf"{re.escape(name)}(?![\w$])", renamed, text)
            return text

        if statement["label"]:
            if block.instructions:
                block = Block()
                kernel.blocks.append(block)
            block.labels.append(statement["label"])
        elif statement["open"]:
            number_of_scopes += 1
            scopes.append({})
        elif statement["close"]:
            scopes.pop()
        elif statement["location"]:
            location = _location(statement["location"], files, known) or location
        elif statement["type"]:
            for name in (n.strip() for n in statement["names"].split(",")):
                many = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
                for one in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]:
                    own = one if len(scopes) == 1 else f"{one}_{number_of_scopes}"
                    scopes[-1][one] = own
                    kernel.registers[own] = statement["type"]
        elif statement["opcode"]:
            found = Instruction(
                here, scoped(statement["guard"] or ""), statement["opcode"],
                _operands(scoped(statement["operands"])), location,
            )  # fmt: skip
            block.instructions.append(found)
            if found.ends_block:
                block = Block()
                kernel.blocks.append(block)
    kernel.blocks = [block for block in kernel.blocks if block.instructions or block.labels]


def _location(text: str, files: dict[int, str], known: dict[tuple[str, ...], Location]) -> Location:
    """`.loc FILE LINE COLUMN[, function_name NAME, inlined_at FILE LINE COLUMN]`. The call's place is that of an
    earlier .loc, which may itself be inlined. Empty for line 0, which means that the code belongs to no line."""
    place, *caller = re.findall(r"(?:\.loc|inlined_at)\s+(\d+)\s+(\d+)\s+(\d+)", text)
    outer = [known.get(c, ((files.get(int(c[0]), c[0]), int(c[1])),)) for c in caller]
    location = ((files.get(int(place[0]), place[0]), int(place[1])), *(outer[0] if outer else ()))
    known[place] = location
    return location if place[1] != "0" else ()
