//! Features: what Get Features and Set Features name and move (Base §5.1.25).

/// SEL of Get Features (Base §5.1.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Select {
    /// 000b: the value in force.
    #[default]
    Current,
    /// 001b: the value that the controller was made with.
    Default,
    /// 010b: the value that was saved last.
    Saved,
    /// 011b: what may be done with the feature; see the `CAPABILITY_*` constants.
    Supported,
    /// 100b to 111b.
    Reserved(u8),
}

impl Select {
    /// From the low three bits of `bits`.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0b111 {
            0 => Self::Current,
            1 => Self::Default,
            2 => Self::Saved,
            3 => Self::Supported,
            reserved => Self::Reserved(reserved),
        }
    }

    /// The three bits of the field.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Current => 0,
            Self::Default => 1,
            Self::Saved => 2,
            Self::Supported => 3,
            Self::Reserved(reserved) => reserved & 0b111,
        }
    }
}
