//! Copies to and from memory that others may write at the same time.
//!
//! Devices, peers and other threads write regions while we read them. No Rust reference may
//! exist to such memory, and an ordinary copy of it would be a data race. The copies here are
//! opaque to the compiler (string instructions on `x86_64`) or made of relaxed atomics
//! (elsewhere, and under Miri). What a racing copy reads is any mix of old and new bytes.

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod imp {
    use std::arch::asm;

    /// Up to this length a string instruction takes longer to begin than a loop does in all.
    const SHORT_MAX: usize = 128;

    /// # Safety
    /// `len` bytes must be mapped readable at `from` and writable at `to`, not overlapping.
    #[inline]
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        if len <= SHORT_MAX && len > 0 && len.is_multiple_of(16) {
            // SAFETY: the caller vouches for both ranges. SSE2 is part of x86_64.
            unsafe {
                asm!(
                    "2:",
                    "sub {len}, 16",
                    "movdqu {a}, [{from} + {len}]",
                    "movdqu [{to} + {len}], {a}",
                    "jnz 2b",
                    from = in(reg) from,
                    to = in(reg) to,
                    len = inout(reg) len => _,
                    a = out(xmm_reg) _,
                    options(nostack),
                );
            }
            return;
        }
        // SAFETY: the caller vouches for both ranges; the direction flag is clear by the ABI.
        unsafe {
            asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
                 options(nostack, preserves_flags));
        }
    }

    /// Copies past the caches: what is written is not read again soon, and a line that will be
    /// overwritten as a whole need not be fetched from memory first.
    ///
    /// # Safety
    /// As `copy`; `to` and `len` must be multiples of 64, `len` not 0.
    pub(super) unsafe fn stream(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the caller vouches for both ranges, and for the alignment that movntdq needs.
        // SSE2 is part of x86_64. The fence orders these stores before later ones.
        unsafe {
            asm!(
                "2:",
                "movdqu {a}, [{from}]",
                "movdqu {b}, [{from} + 16]",
                "movdqu {c}, [{from} + 32]",
                "movdqu {d}, [{from} + 48]",
                "movntdq [{to}], {a}",
                "movntdq [{to} + 16], {b}",
                "movntdq [{to} + 32], {c}",
                "movntdq [{to} + 48], {d}",
                "add {from}, 64",
                "add {to}, 64",
                "sub {len}, 64",
                "jnz 2b",
                "sfence",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                len = inout(reg) len => _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                options(nostack),
            );
        }
    }

    /// # Safety
    /// `len` bytes must be mapped writable at `to`.
    pub(super) unsafe fn zero(to: *mut u8, len: usize) {
        // SAFETY: the caller vouches for the range; the direction flag is clear by the ABI.
        unsafe {
            asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") 0u8,
                 options(nostack, preserves_flags));
        }
    }
}

#[cfg(any(not(target_arch = "x86_64"), miri))]
mod imp {
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

    /// # Safety
    /// As the other `copy`. Only one side may be shared; the other is the caller's own.
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
        let mut at = 0;
        // SAFETY: `at` stays below `len`, words are used only where both sides are aligned.
        unsafe {
            while at < len {
                let (f, t) = (from.add(at), to.add(at));
                if len - at >= 8 && f.addr() % 8 == 0 && t.addr() % 8 == 0 {
                    let word = AtomicU64::from_ptr(f.cast_mut().cast()).load(Relaxed);
                    AtomicU64::from_ptr(t.cast()).store(word, Relaxed);
                    at += 8;
                } else {
                    let byte = AtomicU8::from_ptr(f.cast_mut()).load(Relaxed);
                    AtomicU8::from_ptr(t).store(byte, Relaxed);
                    at += 1;
                }
            }
        }
    }

    /// # Safety
    /// As `copy`.
    pub(super) unsafe fn stream(from: *const u8, to: *mut u8, len: usize) {
        // SAFETY: the same demands.
        unsafe { copy(from, to, len) }
    }

    /// # Safety
    /// `len` bytes must be mapped writable at `to`.
    pub(super) unsafe fn zero(to: *mut u8, len: usize) {
        let mut at = 0;
        // SAFETY: `at` stays below `len`, words are used only where aligned.
        unsafe {
            while at < len {
                let t = to.add(at);
                if len - at >= 8 && t.addr() % 8 == 0 {
                    AtomicU64::from_ptr(t.cast()).store(0, Relaxed);
                    at += 8;
                } else {
                    AtomicU8::from_ptr(t).store(0, Relaxed);
                    at += 1;
                }
            }
        }
    }
}

/// Copies into shared memory of this length and more go past the caches. A RAM disk is larger than
/// they are, and what is written to it pushes out what the next command needs.
const STREAM_MIN: usize = 2048;

/// Copies out of shared memory.
///
/// # Safety
/// `to.len()` bytes must be mapped readable at `from`, and no Rust reference may exist to them.
pub(crate) unsafe fn read_shared(from: *const u8, to: &mut [u8]) {
    // SAFETY: the caller vouches for `from`; `to` is a live exclusive slice, so they are apart.
    unsafe { imp::copy(from, to.as_mut_ptr(), to.len()) }
}

/// Copies into shared memory.
///
/// # Safety
/// `from.len()` bytes must be mapped writable at `to`, and no Rust reference may exist to them.
pub(crate) unsafe fn write_shared(to: *mut u8, from: &[u8]) {
    let is_streamed =
        from.len() >= STREAM_MIN && from.len().is_multiple_of(64) && to.addr().is_multiple_of(64);
    // SAFETY: the caller vouches for `to`; `from` is a live slice of other memory.
    unsafe {
        if is_streamed {
            imp::stream(from.as_ptr(), to, from.len());
        } else {
            imp::copy(from.as_ptr(), to, from.len());
        }
    }
}

/// Zeroes shared memory.
///
/// # Safety
/// `len` bytes must be mapped writable at `to`, and no Rust reference may exist to them.
pub(crate) unsafe fn zero_shared(to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for the range.
    unsafe { imp::zero(to, len) }
}
