"""Translates PTX kernels to C++ functions for the emulated GPU: one statement per instruction, one label per block.

Semantics follow the PTX ISA; machine.h has the instructions without a C++ operator. An unknown instruction, modifier or
operand raises `Unsupported`, which names it.
"""

import re

from ptx import Block, Instruction, Kernel, Unsupported

_TYPES = {
    "pred": "bool", "b8": "uint8_t", "b16": "uint16_t", "b32": "uint32_t", "b64": "uint64_t",
    "u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t",
    "s8": "int8_t", "s16": "int16_t", "s32": "int32_t", "s64": "int64_t",
    "u16x2": "uint32_t", "s16x2": "uint32_t",
    "f16": "uint16_t", "bf16": "uint16_t", "f16x2": "uint32_t", "bf16x2": "uint32_t", "f32": "float", "f64": "double",
}  # fmt: skip
_HALVES = {"f16": "gpu::Half", "bf16": "gpu::BFloat16"}
_SPECIAL = {
    "%tid.x": "emulation::here.thread", "%ntid.x": "emulation::here.threads", "%ctaid.x": "block_number()",
    "%tid.y": "0", "%tid.z": "0", "%ctaid.y": "0", "%ctaid.z": "0", "%laneid": "emulation::here.thread % 32",
}  # fmt: skip
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED_COMPARE = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_ROUND = {"rni": "__builtin_rint", "rzi": "__builtin_trunc", "rmi": "__builtin_floor", "rpi": "__builtin_ceil"}
# Cache hints do not change values.
_CACHE_HINTS = re.compile(r"nc|ca|cg|cs|lu|cv|wb|wt|weak|L1::\w+|L2::\w+")


def bits(type: str) -> int:
    return 1 if type == "pred" else 32 if type.endswith("x2") else int(re.sub(r"\D", "", type))


def _is_float(type: str) -> bool:
    return type in ("f32", "f64")


class Translator:
    """The C++ of one kernel. Each place for a planted fault, a PTX line and a kind, checks FAULT."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._parameters = {p.name: p for p in kernel.parameters}

    def source(self, function: str) -> str:
        lines = [f"static void {function}(const void* P) {{", "  (void)P;"]
        for name, type in self.kernel.registers.items():
            lines.append(f"  {_TYPES[type]} {_identifier(name)};")
        for number, block in enumerate(self.kernel.blocks):
            lines += self._block(number, block)
        return "\n".join([*lines, "}"])

    def _block(self, number: int, block: Block) -> list[str]:
        lines = [f"{_identifier(label)}: __attribute__((unused));" for label in block.labels]
        lines.append(f"  BLOCK({number});")
        for i in block.instructions:
            statement = self._statement(i)
            if i.guard:
                negative, name = i.guard.startswith("!"), _identifier(i.guard.lstrip("!"))
                statement = f"if ({'!' * negative}{name} != FAULT(kGuard, {i.line})) {{ {statement} }}"
            lines.append(f"  {statement}  // {i.line}")
        return lines

    def _statement(self, i: Instruction) -> str:
        try:
            kinds = _ARITHMETIC.get(i.base)
            return self._arithmetic(i, kinds) if kinds else getattr(self, f"_{i.base}")(i)
        except (Unsupported, KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            what = f"{i.opcode} {', '.join(i.operands)}"
            which = f": {error}" if isinstance(error, Unsupported) and str(error) else ""
            raise Unsupported(
                f"{self.kernel.name}: line {i.line}: the instruction `{what}` is not known{which}"
            ) from error

    # Operands

    def value(self, operand: str, type: str) -> str:
        """The operand, read as the type."""
        c = _TYPES[type]
        if operand in _SPECIAL:
            return f"({c})({_SPECIAL[operand]})"
        if operand in self.kernel.registers:
            return f"read<{c}>({_identifier(operand)})"
        if number := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
            return f"read<{c}>(from_bits<float>(0x{number[1]}u))"
        if number := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", operand):
            return f"read<{c}>(from_bits<double>(0x{number[1]}ull))"
        if re.fullmatch(r"-?\d+|-?0x[0-9a-fA-F]+", operand):
            return f"({c}){int(operand, 0) % 2**64}ull"
        if operand in self._parameters:
            return f"({c})((uint64_t)P + {self._parameters[operand].offset})"
        if operand in self.kernel.shared:
            return f"({c}){self.kernel.shared[operand]}"
        raise Unsupported(f"the operand {operand}")

    def address(self, operand: str, space: str, line: int) -> str:
        inside = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+|0x[0-9a-fA-F]+))?\s*\]", operand)
        if not inside:
            raise Unsupported(f"the address {operand}")
        base, offset = inside[1], inside[2] or "0"
        if base in self._parameters:
            start = f"(uint64_t)P + {self._parameters[base].offset}"
        elif base in self.kernel.shared:
            start = str(self.kernel.shared[base])
        else:
            narrow = self.kernel.registers.get(base) in ("b32", "u32", "s32")
            start = self.value(base, "u32" if narrow else "u64")
        planted = "" if space == "param" else f" + (FAULT(kOffset, {line}) ? 4 : 0)"
        return f"(uint64_t)({start} + {offset}ll{planted})"

    def put(self, register: str, value: str) -> str:
        if register == "_":
            return ""
        if register not in self.kernel.registers:
            raise Unsupported(f"the destination {register}")
        return f"write({_identifier(register)}, {value});"

    def _site(self, i: Instruction) -> str:
        return f"Site{{kFile, {i.line}}}"

    # Control flow

    def _bra(self, i: Instruction) -> str:
        (label,) = i.operands
        return f"goto {_identifier(label)};"

    def _ret(self, i: Instruction) -> str:
        return "return;"

    _exit = _ret

    def _bar(self, i: Instruction) -> str:
        if i.opcode not in ("bar.sync", "barrier.sync") or i.operands != ("0",):
            raise Unsupported("")
        return f"if (!FAULT(kBarrier, {i.line})) emulation::barrier({self._site(i)});"

    _barrier = _bar

    def _shfl(self, i: Instruction) -> str:
        exchange = {
            "shfl.sync.bfly.b32": "emulation::exchange(&x, 1, 4, lane, site)",
            "shfl.sync.idx.b32": "x = value_of_lane(x, lane, site)",
        }[i.opcode]
        to, value, lane, clamp, members = i.operands
        to, _, there = to.partition("|")
        there = self.put(there, "true") if there else ""  # the other of 32 lanes always exists
        return (
            f"{{ const Site site = {self._site(i)}; "
            f"whole_warp({self.value(clamp, 'b32')}, {self.value(members, 'b32')}, site); "
            f"uint32_t x = {self.value(value, 'b32')}; const int lane = {self.value(lane, 's32')}; "
            f"{exchange}; {self.put(to, 'x')} {there} }}"
        )

    # Memory

    def _ld(self, i: Instruction) -> str:
        space, count, type = self._access(i)
        registers, size = _vector(i.operands[0], count), bits(type) // 8
        wide = "int64_t" if type[0] == "s" else "uint64_t"
        loads = []
        for n, register in enumerate(registers):
            loaded = f"load<{_TYPES[type]}>(m + {n * size})"
            loads.append(self.put(register, f"({wide}){loaded}" if type[0] in "us" else loaded))
        memory = self._memory(i, space, i.operands[1], count * size, "false")
        return f"{{ const char* m = {memory}; {' '.join(loads)} }}"

    def _st(self, i: Instruction) -> str:
        space, count, type = self._access(i)
        if space == "param":
            raise Unsupported("")
        registers, size = _vector(i.operands[1], count), bits(type) // 8
        stores = [f"store(m + {n * size}, {self.value(r, type)});" for n, r in enumerate(registers)]
        return f"{{ char* m = {self._memory(i, space, i.operands[0], count * size, 'true')}; {' '.join(stores)} }}"

    def _red(self, i: Instruction) -> str:
        form = re.fullmatch(r"red\.global\.add\.(?:v([24])\.)?(f32|f64)", i.opcode)
        if not form:
            raise Unsupported("")
        count, type = int(form[1] or 1), form[2]
        registers, size = _vector(i.operands[1], count), bits(type) // 8
        adds = [
            f"emulation::atomic_add(({_TYPES[type]}*)(m + {n * size}), {self.value(r, type)});"
            for n, r in enumerate(registers)
        ]
        return f"{{ char* m = {self._memory(i, 'global', i.operands[0], count * size, 'true')}; {' '.join(adds)} }}"

    def _stmatrix(self, i: Instruction) -> str:
        address, registers, form = self._matrices(i, i.operands[0], i.operands[1])
        values = ", ".join(self.value(r, "b32") for r in registers)
        return f"{{ const uint32_t v[] = {{{values}}}; store_matrices<{form}>({address}, v, {self._site(i)}); }}"

    def _ldmatrix(self, i: Instruction) -> str:
        address, registers, form = self._matrices(i, i.operands[1], i.operands[0])
        puts = " ".join(self.put(r, f"v[{n}]") for n, r in enumerate(registers))
        return f"{{ uint32_t v[{len(registers)}]; load_matrices<{form}>({address}, v, {self._site(i)}); {puts} }}"

    def _matrices(self, i: Instruction, address: str, registers: str) -> tuple[str, list[str], str]:
        form = re.fullmatch(r"\w+\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16", i.opcode)
        if not form:
            raise Unsupported("")
        arguments = f"{form[1]}, {'true' if form[2] else 'false'}"
        return self.address(address, "shared", i.line), _vector(registers, int(form[1])), arguments

    def _memory(self, i: Instruction, space: str, operand: str, size: int, writes: str) -> str:
        address = self.address(operand, space, i.line)
        if space == "param":
            return f"parameter({address}, {size}, P, {self._site(i)})"
        if space == "shared":
            return f"shared({address}, {size}, {self._site(i)})"
        return f"global({address}, {size}, {size}, {writes}, {self._site(i)})"

    def _access(self, i: Instruction) -> tuple[str, int, str]:
        _, *modifiers, type = i.opcode.split(".")
        space = next((m for m in modifiers if m in ("global", "shared", "param")), None)
        count = next((int(m[1]) for m in modifiers if m in ("v2", "v4", "v8")), 1)
        rest = [m for m in modifiers if m != space and m != f"v{count}" and not _CACHE_HINTS.fullmatch(m)]
        if space is None or rest:
            raise Unsupported(f"{'.'.join(rest)}" if rest else "a generic address")
        return space, count, type

    def _cp(self, i: Instruction) -> str:
        if i.opcode == "cp.async.commit_group":
            return "emulation::commit_copies();"
        if i.opcode == "cp.async.wait_group":
            return f"emulation::wait_copies({i.operands[0]} + (FAULT(kWait, {i.line}) ? 1 : 0), {self._site(i)});"
        if not re.fullmatch(r"cp\.async\.(ca|cg)\.shared\.global(\.L2::\w+)?", i.opcode):
            raise Unsupported("")
        to, source, size, *valid = i.operands
        valid_bytes = self.value(valid[0], "s32") if valid else size
        return (
            f"copy({self.address(to, 'shared', i.line)}, {self.address(source, 'global', i.line)}, {size}, "
            f"{valid_bytes}, {self._site(i)});"
        )

    def _cvta(self, i: Instruction) -> str:
        value = self.value(i.operands[1], "u64")
        change = {
            "cvta.to.global.u64": value, "cvta.global.u64": value,
            "cvta.shared.u64": f"({value} + kSharedWindow)", "cvta.to.shared.u64": f"({value} - kSharedWindow)",
        }  # fmt: skip
        return self.put(i.operands[0], change[i.opcode])

    # Values

    def _mov(self, i: Instruction) -> str:
        type = i.opcode.removeprefix("mov.")
        to, source = i.operands
        if to.startswith("{"):
            registers = _vector(to, None)
            each = bits(type) // len(registers)
            puts = [self.put(r, f"(uint{each}_t)(v >> {each * n})") for n, r in enumerate(registers)]
            return f"{{ const uint64_t v = {self.value(source, f'b{bits(type)}')}; {' '.join(puts)} }}"
        if source.startswith("{"):
            registers = _vector(source, None)
            each = bits(type) // len(registers)
            joined = " | ".join(f"(uint64_t){self.value(r, f'b{each}')} << {each * n}" for n, r in enumerate(registers))
            return self.put(to, f"({_TYPES[f'b{bits(type)}']})({joined})")
        return self.put(to, f"(bool)({self.value(source, type)})" if type == "pred" else self.value(source, type))

    def _cvt(self, i: Instruction) -> str:
        _, *modifiers, target, source = i.opcode.split(".")
        flush = "ftz" in modifiers
        rounding = [m for m in modifiers if m != "ftz"]
        if target in ("bf16x2", "f16x2") and source == "f32" and rounding == ["rn"]:
            half = _HALVES[target.removesuffix("x2")]
            high, low = (f"emulation::narrowed<{half}>({self.value(o, 'f32')})" for o in i.operands[1:])
            return self.put(i.operands[0], f"(uint32_t)((uint32_t){high} << 16 | {low})")
        to, operand = i.operands
        if target in _HALVES and _is_float(source) and rounding == ["rn"]:
            return self.put(to, f"emulation::narrowed<{_HALVES[target]}>({self.value(operand, source)})")
        if source in _HALVES and target == "f32" and not rounding:
            return self.put(to, f"emulation::widened<{_HALVES[source]}>({self.value(operand, source)})")
        if any(t in _HALVES for t in (target, source)):
            raise Unsupported("")
        value = _flushed(self.value(operand, source), flush and source == "f32")
        if _is_float(source) and not _is_float(target):
            (mode,) = rounding
            return self.put(to, f"to_integer<{_TYPES[target]}>({_ROUND[mode]}((double){value}))")
        if _is_float(source) and rounding and rounding[0] in _ROUND:
            return self.put(to, f"({_TYPES[target]}){_ROUND[rounding[0]]}((double){value})")
        if _is_float(target):
            if rounding not in (["rn"], []):
                raise Unsupported("")
            return self.put(to, f"({_TYPES[target]}){value}")
        if rounding:
            raise Unsupported("")
        return self.put(to, f"({'int64_t' if target[0] == 's' else 'uint64_t'})({_TYPES[target]}){value}")

    def _setp(self, i: Instruction) -> str:
        _, compare, *modifiers, type = i.opcode.split(".")
        to, first, second = i.operands
        if set(modifiers) - {"ftz"} or "|" in to:
            raise Unsupported("")
        a, b = self.value(first, type), self.value(second, type)
        if type in _HALVES:
            a, b, type = *(f"emulation::widened<{_HALVES[type]}>({half})" for half in (a, b)), "f32"
        if "ftz" in modifiers:
            a, b = _flushed(a), _flushed(b)
        compare = _UNSIGNED_COMPARE.get(compare, compare)
        ordered, unordered = f"({a} == {a} && {b} == {b})", f"({a} != {a} || {b} != {b})"
        if compare in ("num", "nan"):
            return self.put(to, ordered if compare == "num" else unordered)
        if _is_float(type) and compare.endswith("u") and compare[:-1] in _COMPARE:
            return self.put(to, f"({a} {_COMPARE[compare[:-1]]} {b} || {unordered})")
        test = f"{a} {_COMPARE[compare]} {b}"
        return self.put(to, f"({test} && {ordered})" if _is_float(type) and compare == "ne" else f"({test})")

    def _selp(self, i: Instruction) -> str:
        type = i.opcode.removeprefix("selp.")
        to, first, second, predicate = i.operands
        a, b = self.value(first, type), self.value(second, type)
        return self.put(to, f"({self.value(predicate, 'pred')} ? {a} : {b})")

    def _arithmetic(self, i: Instruction, kinds: dict[str, str]) -> str:
        """By the kind of the type: a template over the operands {0}, {1}, ..., the type's name {c}, its unsigned name
        {u}, the name of the type of a product twice as wide {w} and the site of the instruction."""
        _, *modifiers, type = i.opcode.split(".")
        flush = "ftz" in modifiers
        kind = "pred" if type == "pred" else "float" if _is_float(type) else "integer"
        if type.endswith("x2"):
            kind = "pair" if type[0] in "us" else "pair of halves"
        if type in _HALVES:
            kind = "half"
        words = [m for m in modifiers if m not in ("ftz", "rn")] if kind == "float" else modifiers
        template = kinds[".".join([kind, *words])]
        types = [type] * (len(i.operands) - 1)
        unsigned = "bool" if kind == "pred" else f"uint{bits(type)}_t"
        wide = f"{'int' if type[0] == 's' else 'uint'}{2 * bits(type)}_t" if "wide" in modifiers else ""
        if "wide" in modifiers and len(types) == 3:
            types[2] = f"{type[0]}{2 * bits(type)}"
        if i.base in ("shl", "shr"):
            types[1] = "u32"
        if i.base == "bfe":
            types[1:] = ["u32", "u32"]
        if i.base == "bfi":
            types[2:] = ["u32", "u32"]
        operands = [_flushed(self.value(o, t), flush and type == "f32") for o, t in zip(i.operands[1:], types)]
        result = template.format(*operands, c=_TYPES[type], u=unsigned, w=wide, site=self._site(i))
        cast = wide or (_TYPES[type] if kind != "pred" else "bool")
        return self.put(i.operands[0], _flushed(f"({cast})({result})", flush and type == "f32"))


# The C++ of each instruction, by kind of type and by modifiers except .rn and .ftz.
_BITWISE = {"and": "&", "or": "|", "xor": "^"}
_ARITHMETIC: dict[str, dict[str, str]] = {
    "add": {"float": "{0} + {1}", "integer": "({u}){0} + ({u}){1}",
            "pair": "(({0} & 0xffff0000u) + ({1} & 0xffff0000u)) | (({0} + {1}) & 0xffffu)"},
    "sub": {"float": "{0} - {1}", "integer": "({u}){0} - ({u}){1}"},
    "mul": {"float": "{0} * {1}", "integer.lo": "product<{u}>({0}, {1})", "integer.wide": "({w}){0} * ({w}){1}",
            "integer.hi": "high_half<{c}>({0}, {1})"},
    "mad": {"integer.lo": "product<{u}>({0}, {1}) + ({u}){2}", "integer.wide": "({w}){0} * ({w}){1} + ({w}){2}"},
    "fma": {"float": "fused({0}, {1}, {2})"},
    "div": {"float": "{0} / {1}", "float.full": "{0} / {1}", "float.approx": "{0} * reciprocal({1})",
            "integer": "quotient<{c}>({0}, {1}, {site})"},
    "rem": {"integer": "remainder<{c}>({0}, {1}, {site})"},
    "min": {"float": "smaller({0}, {1})", "float.NaN": "smaller_or_nan({0}, {1})",
            "integer": "({0} < {1} ? {0} : {1})"},
    "max": {"float": "larger({0}, {1})", "float.NaN": "larger_or_nan({0}, {1})", "integer": "({0} > {1} ? {0} : {1})"},
    **{name: {"integer": f"{{0}} {sign} {{1}}", "pred": f"{{0}} {sign} {{1}}"} for name, sign in _BITWISE.items()},
    "not": {"integer": "~{0}", "pred": "!{0}"},
    "neg": {"float": "-{0}", "integer": "0 - ({u}){0}"},
    "abs": {"float": "magnitude({0})", "integer": "({0} < 0 ? 0 - ({u}){0} : ({u}){0})"},
    "shl": {"integer": "shifted_left<{c}>({0}, {1})"},
    "shr": {"integer": "shifted_right<{c}>({0}, {1})"},
    "bfe": {"integer": "bit_field<{c}>({0}, {1}, {2})"},
    "bfi": {"integer": "with_bit_field<{c}>({0}, {1}, {2}, {3})"},
    "rcp": {"float": "1 / {0}", "float.approx": "reciprocal({0})"},
    "ex2": {"float.approx": "::exp2f({0})"},
}  # fmt: skip


def _flushed(value: str, flush: bool = True) -> str:
    return f"emulation::flushed({value})" if flush else value


def _vector(operand: str, count: int | None) -> list[str]:
    registers = [r.strip() for r in operand.strip("{} ").split(",")]
    if count is not None and len(registers) != count:
        raise Unsupported(f"{len(registers)} registers")
    return registers


def _identifier(name: str) -> str:
    """A C++ name, without %, . and $."""
    return "r_" + re.sub(r"[%$.]", "_", name)


def translate(kernel: Kernel, file: str) -> str:
    """The C++ source of a library that launches the kernel; `file` is what messages call its PTX."""
    sites = "\n".join(f"// {number}: {' '.join(block.labels)}" for number, block in enumerate(kernel.blocks))
    return f"""#include "machine.h"

namespace vmddpm {{
namespace ptx {{

static const char kFile[] = "{file}";
const int64_t kParameterBytes = {kernel.parameter_bytes};
const int kMostThreads = {kernel.most_threads};
const int kBlocks = {len(kernel.blocks)};
const int kLines = {max((i.line for i in kernel.instructions), default=0) + 1};
{sites}

{Translator(kernel).source("run")}

void (*const kernel)(const void*) = run;

}}  // namespace ptx
}}  // namespace vmddpm
"""
