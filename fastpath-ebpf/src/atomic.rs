//! Atomic operations on map values. The target has them (from CPU v3 on), but the standard library offers them only
//! where compare-and-swap is a given, which it isn't for BPF.

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
pub unsafe fn or(target: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u32 *)({t} + 0) |= {v}", v = in(wreg) value, t = in(reg) target) }
}

/// Stores `value` to `*target` and returns what was there before.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn swap(target: *mut u32, value: u32) -> u32 {
    let mut register = value;
    // SAFETY: the caller's promise.
    unsafe { asm!("{v} = xchg32_32({t} + 0, {v})", v = inout(wreg) register, t = in(reg) target) }
    register
}
