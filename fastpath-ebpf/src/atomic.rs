//! Atomic operations on map values. The kernel has had them since 5.12, but the standard library offers them only
//! where compare-and-swap is a given, which it isn't for this target. 64 bits only: the others need another target CPU.

use core::arch::asm;

/// Adds `value` to `*target` and returns what was there before.
///
/// # Safety
/// `target` is aligned and lies in a map value.
#[inline(always)]
pub unsafe fn fetch_add(target: *mut u64, value: u64) -> u64 {
    let mut register = value;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("{v} = atomic_fetch_add((u64 *)({t} + 0), {v})", v = inout(reg) register, t = in(reg) target);
    }
    register
}

/// Adds `value` to `*target`.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn add(target: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({t} + 0) += {v}", v = in(reg) value, t = in(reg) target) }
}

/// Ors `value` to `*target`.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn or(target: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({t} + 0) |= {v}", v = in(reg) value, t = in(reg) target) }
}

/// Ands `value` to `*target`.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn and(target: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({t} + 0) &= {v}", v = in(reg) value, t = in(reg) target) }
}

/// Stores `value` to `*target` and returns what was there before.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn swap(target: *mut u64, value: u64) -> u64 {
    let mut register = value;
    // SAFETY: the caller's promise.
    unsafe { asm!("{v} = xchg_64({t} + 0, {v})", v = inout(reg) register, t = in(reg) target) }
    register
}
