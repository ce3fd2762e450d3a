//! The one-time code of a node that is not configured yet.
//!
//! Bounds: tries are taken one after the other; after each wrong one the next waits longer, up to
//! 30 s; after ten wrong ones the code is another. So nobody tries more than ten of 2^60 codes, and
//! somebody who tries at all delays the one who stands at the console by 30 s at most each time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use subtle::ConstantTimeEq as _;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Crockford's base 32: no letter that looks like a digit.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of a code: 60 bits.
const CODE_CHARACTERS: usize = 12;
/// Wrong tries after which the code is another.
const TRIES_MAX: u32 = 10;
/// Callers that wait for their try.
const WAITING_MAX: usize = 8;
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Why a code does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// It is not the code.
    #[error("the code is wrong; it is on the node's console, and changes after ten wrong tries")]
    Wrong,
    /// Too many callers try.
    #[error("too many callers try codes; try again in a minute")]
    Busy,
    /// No code opens this node.
    #[error("this node is configured: come with a client certificate")]
    Closed,
}

#[derive(Debug)]
struct Tries {
    wrong: u32,
    next: Instant,
}

/// Where codes are tried.
#[derive(Debug)]
pub struct Gate {
    code: watch::Sender<Option<String>>,
    /// Held while a try waits, so that tries come one after the other.
    turn: tokio::sync::Mutex<()>,
    tries: Mutex<Tries>,
    waiting: Semaphore,
}

impl Gate {
    /// A gate that no code opens.
    #[must_use]
    pub fn closed() -> Gate {
        Gate {
            code: watch::Sender::new(None),
            turn: tokio::sync::Mutex::new(()),
            tries: Mutex::new(Tries {
                wrong: 0,
                next: Instant::now(),
            }),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }

    /// Makes a new code that opens it.
    pub fn open(&self) {
        self.code.send_replace(Some(new_code()));
    }

    /// No code opens it from now on.
    pub fn close(&self) {
        self.code.send_replace(None);
    }

    /// The code, for the console: `XXXX-XXXX-XXXX`.
    #[must_use]
    pub fn code(&self) -> watch::Receiver<Option<String>> {
        self.code.subscribe()
    }

    /// Tries a code. Case, spaces and hyphens do not matter.
    ///
    /// # Errors
    /// When it is wrong, too many try, or no code opens the gate.
    pub async fn check(&self, given: &str) -> Result<(), CodeError> {
        let _place = self.waiting.try_acquire().map_err(|_| CodeError::Busy)?;
        let _turn = self.turn.lock().await;
        let next = self
            .tries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next;
        tokio::time::sleep_until(next).await;
        let Some(code) = self.code.borrow().clone() else {
            return Err(CodeError::Closed);
        };
        if is_same(&code, given) {
            let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
            tries.wrong = 0;
            return Ok(());
        }
        let wrong = {
            let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
            tries.wrong += 1;
            tries.next = Instant::now() + delay(tries.wrong);
            let wrong = tries.wrong;
            if wrong >= TRIES_MAX {
                tries.wrong = 0;
            }
            wrong
        };
        tracing::warn!(wrong, "a wrong maintenance code was tried");
        if wrong >= TRIES_MAX {
            self.open();
        }
        Err(CodeError::Wrong)
    }
}

/// 1, 2, 4 ... 30 s.
fn delay(wrong: u32) -> Duration {
    Duration::from_secs(1 << wrong.saturating_sub(1).min(5)).min(DELAY_MAX)
}

fn new_code() -> String {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; CODE_CHARACTERS];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .expect("the kernel gives random numbers once it has entropy, and getrandom waits for it");
    let mut code = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 && index % 4 == 0 {
            code.push('-');
        }
        code.push(char::from(ALPHABET[usize::from(byte % 32)]));
    }
    code
}

fn is_same(code: &str, given: &str) -> bool {
    // A code of another length says nothing about the right one.
    let bytes = |text: &str| -> Vec<u8> {
        let kept = text.bytes().filter(u8::is_ascii_alphanumeric);
        kept.map(|byte| byte.to_ascii_uppercase()).collect()
    };
    given.len() <= 64 && bool::from(bytes(code).ct_eq(&bytes(given)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(gate: &Gate) -> String {
        gate.code().borrow().clone().unwrap()
    }

    #[test]
    fn a_code_is_typed_as_people_type() {
        let gate = Gate::closed();
        gate.open();
        let code = code(&gate);
        assert_eq!(code.len(), 14);
        assert!(is_same(&code, &code.to_lowercase()));
        assert!(is_same(&code, &format!(" {} ", code.replace('-', " "))));
        for wrong in ["", "-", &code[1..], &format!("{code}0"), &"0".repeat(1000)] {
            assert!(!is_same(&code, wrong), "{wrong:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tries_take_longer_and_longer_and_change_the_code() {
        let gate = Gate::closed();
        assert_eq!(gate.check("x").await, Err(CodeError::Closed));
        gate.open();
        let first = code(&gate);
        gate.check(&first).await.unwrap();
        let start = Instant::now();
        for _ in 0..TRIES_MAX {
            assert_eq!(code(&gate), first);
            assert_eq!(gate.check("wrong").await, Err(CodeError::Wrong));
        }
        // Nine waits between ten tries: 1 + 2 + 4 + 8 + 16 and four times 30 s.
        assert_eq!(start.elapsed().as_secs(), 31 + 4 * 30);
        let second = code(&gate);
        assert_ne!(second, first);
        assert_eq!(gate.check(&first).await, Err(CodeError::Wrong));
        gate.check(&second).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn tries_at_the_same_time_take_turns_and_are_bounded() {
        let gate = std::sync::Arc::new(Gate::closed());
        gate.open();
        let start = Instant::now();
        let tries: Vec<_> = (0..WAITING_MAX + 3)
            .map(|_| {
                let gate = gate.clone();
                tokio::spawn(async move { gate.check("wrong").await })
            })
            .collect();
        let mut answers = Vec::new();
        for each in tries {
            answers.push(each.await.unwrap());
        }
        let busy = answers
            .iter()
            .filter(|answer| **answer == Err(CodeError::Busy));
        // The first try waits for nobody, and its place is free again at once.
        assert_eq!(busy.count(), 2);
        assert_eq!(start.elapsed().as_secs(), 31 + 3 * 30);
    }

    #[tokio::test(start_paused = true)]
    async fn the_right_code_after_a_wrong_one_waits_its_turn() {
        let gate = Gate::closed();
        gate.open();
        assert_eq!(gate.check("wrong").await, Err(CodeError::Wrong));
        let start = Instant::now();
        gate.check(&code(&gate)).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 1);
        gate.close();
        assert_eq!(gate.check("x").await, Err(CodeError::Closed));
    }
}
