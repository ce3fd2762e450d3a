//! Identifiers that would all be bare integers otherwise.

use core::fmt;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

identifier! {
    /// Namespace identifier, NSID (Base §3.2.1). 0 names no namespace.
    Nsid(u32)
}
identifier! {
    /// Command identifier, CID (Base §4.1). Unique among the commands outstanding on one queue.
    Cid(u16)
}
identifier! {
    /// Queue identifier, QID. 0 is the admin queue.
    Qid(u16)
}
identifier! {
    /// Controller identifier, CNTLID. Unique within an NVM subsystem.
    Cntlid(u16)
}
identifier! {
    /// Logical block address, in logical blocks of the namespace it is used with.
    Lba(u64)
}

impl Nsid {
    /// No namespace.
    pub const NONE: Self = Self(0);
    /// The broadcast value FFFFFFFFh: all namespaces, where a command allows it (Base §3.2.1).
    pub const ALL: Self = Self(0xffff_ffff);

    /// Whether this is the broadcast value.
    pub const fn is_all(self) -> bool {
        self.0 == Self::ALL.0
    }

    /// Whether a namespace could have this identifier: neither 0 nor the broadcast value. FFFFFFFEh
    /// is for the caller to bound by NN.
    pub const fn is_valid(self) -> bool {
        self.0 != Self::NONE.0 && self.0 != Self::ALL.0
    }
}

impl Qid {
    /// The admin queue.
    pub const ADMIN: Self = Self(0);

    /// Whether this is the admin queue.
    pub const fn is_admin(self) -> bool {
        self.0 == 0
    }
}

impl Cntlid {
    /// FFFEh in Connect: the host may be given any statically modelled controller.
    pub const ANY_STATIC: Self = Self(0xfffe);
    /// FFFFh in Connect: the subsystem makes a controller (dynamic controller model).
    pub const DYNAMIC: Self = Self(0xffff);
}
