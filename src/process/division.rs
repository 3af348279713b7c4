//! Divisions of whole numbers that overflow.
//!
//! The smallest number divided by -1 has no result that fits. ONNX Runtime divides by the processor's own instruction, at
//! which an x86-64 processor then ends the process: one request of one client would take everybody's answers. A 64-bit ARM
//! processor gives the smallest number again, and remainder 0, as `NumPy` does. The handler here gives the same, and goes
//! on behind the instruction.
//!
//! Invariant: this fault of this instruction alone is handled. Any other ends the process as it would without a handler.

use std::sync::Once;

use libc::{c_int, c_void, siginfo_t, ucontext_t};

/// The kernel's word for a division that has no result; libc does not have it.
const FPE_INTDIV: c_int = 1;

/// The numbers by which the context of a signal has the registers, in the order in which instructions number them.
const REGISTERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const RAX: u8 = 0;
const RDX: u8 = 2;
const STACK_POINTER: u8 = 4;
const BASE_POINTER: u8 = 5;

/// Lets divisions that overflow go on.
pub(super) fn go_on_after_overflows() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all fields of the structure may be zero, and the handler does nothing that is not allowed in one: it
        // reads and writes registers and the memory that the instruction itself reads.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // If it is refused, such a division ends the process as before.
            libc::sigaction(libc::SIGFPE, &raw const action, std::ptr::null_mut());
        }
    });
}

extern "C" fn handle(_signal: c_int, information: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives both for a handler that was installed with SA_SIGINFO.
    let (information, context) =
        unsafe { (information.as_ref(), context.cast::<ucontext_t>().as_mut()) };
    let is_division = information.is_some_and(|it| it.si_code == FPE_INTDIV);
    let finished = is_division && context.is_some_and(|context| finish(context).is_some());
    if !finished {
        // The instruction is executed again, and ends the process.
        // SAFETY: a signal may be set in a handler.
        unsafe { libc::signal(libc::SIGFPE, libc::SIG_DFL) };
    }
}

/// Gives the division at which `context` stands its result, and moves on behind it, if it is one that overflows.
fn finish(context: &mut ucontext_t) -> Option<()> {
    let registers = &mut context.uc_mcontext.gregs;
    let instruction = *registers.get(slot(libc::REG_RIP))?;
    // SAFETY: the processor has just read the instruction there, and no byte behind its end is asked for.
    let code = |offset: u8| unsafe { *((instruction + i64::from(offset)) as *const u8) };
    let division = Division::read(code)?;
    let behind = instruction + i64::from(division.length);
    let register = |number: u8| -> Option<i64> {
        let number = *REGISTERS.get(usize::from(number))?;
        registers.get(slot(number)).copied()
    };
    let divisor = match division.divisor {
        Operand::Register(number) => register(number)?,
        Operand::Memory(place) => {
            let address = place.address(register, behind)?;
            // SAFETY: the processor has just read it as the divisor.
            unsafe {
                if division.is_wide {
                    (address as *const i64).read_unaligned()
                } else {
                    i64::from((address as *const i32).read_unaligned())
                }
            }
        }
    };
    let (low, high) = (register(RAX)?, register(RDX)?);
    let overflows = if division.is_wide {
        (low, high, divisor) == (i64::MIN, -1, -1)
    } else {
        [low, high, divisor].map(lower_half) == [i32::MIN, -1, -1]
    };
    if !overflows {
        return None;
    }
    // The quotient is the dividend again, and the half of a register that is not written becomes zero.
    let quotient = if division.is_wide {
        low
    } else {
        low & i64::from(u32::MAX)
    };
    for (number, value) in [
        (libc::REG_RAX, quotient),
        (libc::REG_RDX, 0),
        (libc::REG_RIP, behind),
    ] {
        *registers.get_mut(slot(number))? = value;
    }
    Some(())
}

/// Where the context has the register of this number.
fn slot(number: c_int) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the instruction looks at this half only"
)]
fn lower_half(register: i64) -> i32 {
    register as i32
}

/// A signed division, as the processor is told of it.
#[derive(Debug, PartialEq, Eq)]
struct Division {
    /// Bytes of the instruction.
    length: u8,
    /// Whether it divides numbers of 64 bits, not of 32.
    is_wide: bool,
    divisor: Operand,
}

#[derive(Debug, PartialEq, Eq)]
enum Operand {
    Register(u8),
    Memory(Place),
}

/// A place in memory: the sum of its parts.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    base: Base,
    /// A register, and how often it counts.
    index: Option<(u8, i64)>,
    displacement: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Base {
    Nothing,
    Register(u8),
    /// The address behind the instruction.
    Behind,
}

impl Division {
    /// Reads the instruction whose bytes `code` gives, if it is such a division.
    fn read(code: impl Fn(u8) -> u8) -> Option<Self> {
        let prefix = code(0);
        let has_prefix = prefix & 0xf0 == 0x40;
        let extension = if has_prefix { prefix } else { 0 };
        let mut at = u8::from(has_prefix);
        let mut next = || {
            let byte = code(at);
            at += 1;
            byte
        };
        if next() != 0xf7 {
            return None;
        }
        let form = next();
        let (mode, operation, low) = (form >> 6, form >> 3 & 7, form & 7);
        if operation != 7 {
            return None;
        }
        // Each bit of the prefix makes a register's number larger by eight.
        let eight = |bit: u8| (extension >> bit & 1) << 3;
        let divisor = if mode == 3 {
            Operand::Register(low | eight(0))
        } else {
            let mut base = Base::Register(low | eight(0));
            let mut index = None;
            let mut displaced_by = [0, 1, 4].get(usize::from(mode)).copied()?;
            if low == STACK_POINTER {
                let scaled = next();
                let number = scaled >> 3 & 7 | eight(1);
                // The stack pointer is no index.
                index = (number != STACK_POINTER).then_some((number, 1 << (scaled >> 6)));
                base = Base::Register(scaled & 7 | eight(0));
                if scaled & 7 == BASE_POINTER && mode == 0 {
                    (base, displaced_by) = (Base::Nothing, 4);
                }
            } else if low == BASE_POINTER && mode == 0 {
                (base, displaced_by) = (Base::Behind, 4);
            }
            let displacement = match displaced_by {
                0 => 0,
                1 => i64::from(i8::from_le_bytes([next()])),
                _ => i64::from(i32::from_le_bytes([next(), next(), next(), next()])),
            };
            Operand::Memory(Place {
                base,
                index,
                displacement,
            })
        };
        Some(Self {
            length: at,
            is_wide: extension & 8 != 0,
            divisor,
        })
    }
}

impl Place {
    /// The address, by what `register` holds and the address `behind` the instruction.
    fn address(&self, register: impl Fn(u8) -> Option<i64>, behind: i64) -> Option<i64> {
        let base = match self.base {
            Base::Nothing => 0,
            Base::Register(number) => register(number)?,
            Base::Behind => behind,
        };
        let index = match self.index {
            Some((number, times)) => register(number)?.wrapping_mul(times),
            None => 0,
        };
        Some(base.wrapping_add(index).wrapping_add(self.displacement))
    }
}

#[cfg(test)]
mod tests {
    use std::arch::asm;

    use super::*;

    /// The smallest number divided by -1, with the divisor as `$operand` says.
    macro_rules! overflow {
        ($instruction:literal, $widening:literal, $number:ty, $($operand:tt)+) => {{
            let (quotient, remainder): ($number, $number);
            // SAFETY: the handler gives the result that the processor does not.
            unsafe {
                asm!(
                    $widening,
                    $instruction,
                    inout("rax") <$number>::MIN => quotient,
                    out("rdx") remainder,
                    $($operand)+
                );
            }
            (quotient, remainder)
        }};
    }

    #[test]
    fn the_smallest_number_by_minus_one_is_the_smallest_number_in_every_form() {
        go_on_after_overflows();
        let narrow = (i32::MIN, 0);
        let wide = (i64::MIN, 0);
        let (small, large) = (vec![7_i32, -1, 7], vec![7_i64, -1, 7]);
        assert_eq!(overflow!("idiv ecx", "cdq", i32, in("rcx") -1_i32), narrow);
        assert_eq!(overflow!("idiv r9d", "cdq", i32, in("r9") -1_i32), narrow);
        assert_eq!(overflow!("idiv rcx", "cqo", i64, in("rcx") -1_i64), wide);
        assert_eq!(overflow!("idiv r13", "cqo", i64, in("r13") -1_i64), wide);
        assert_eq!(
            overflow!("idiv dword ptr [rsi]", "cdq", i32, in("rsi") &raw const small[1]),
            narrow
        );
        assert_eq!(
            overflow!("idiv dword ptr [r13]", "cdq", i32, in("r13") &raw const small[1]),
            narrow
        );
        assert_eq!(
            overflow!("idiv qword ptr [r12 + 8]", "cqo", i64, in("r12") large.as_ptr()),
            wide
        );
        assert_eq!(
            overflow!("idiv qword ptr [rsi + rdi * 8]", "cqo", i64, in("rsi") large.as_ptr(), in("rdi") 1_i64),
            wide
        );
        assert_eq!(
            overflow!("idiv dword ptr [rdi * 4 + 0x100]", "cdq", i32, in("rdi") (&raw const small[1]).addr().wrapping_sub(0x100) / 4),
            narrow
        );
        assert_eq!(
            overflow!("idiv dword ptr [r8 - 0x1000]", "cdq", i32, in("r8") (&raw const small[1]).addr() + 0x1000),
            narrow
        );
    }

    #[test]
    fn other_instructions_are_not_taken_for_such_a_division() {
        let read = |bytes: &'static [u8]| {
            Division::read(|offset| bytes.get(usize::from(offset)).copied().unwrap_or(0x90))
        };
        // An unsigned division, one of 16 bits, a multiplication, and no arithmetic at all.
        for bytes in [
            &[0xf7, 0xf1][..],
            &[0x66, 0xf7, 0xf9],
            &[0xf7, 0xe9],
            &[0x90],
        ] {
            assert_eq!(read(bytes), None, "{bytes:x?}");
        }
        let relative = read(&[0x48, 0xf7, 0x3d, 0x10, 0, 0, 0]).unwrap();
        assert_eq!((relative.length, relative.is_wide), (7, true));
        let Operand::Memory(place) = relative.divisor else {
            panic!("{relative:?}");
        };
        assert_eq!(place.address(|_| None, 0x1000), Some(0x1010));
    }
}
