//! The clock: never before the day that the image was made.

use crate::status::{State, Status};
use crate::system::System;

/// A day before this program was written, for images that do not tell when they were made: the
/// 1st of November 2026.
const FLOOR_UNIX_S: i64 = 1_793_491_200;
/// A clock further ahead is as wrong as one at 1970.
const CEILING_YEARS: i64 = 30;

/// Puts the clock to `made_unix_s`, when the image was made, if it stands before. The result says
/// that nobody has synchronised it yet.
pub(crate) fn set_floor(system: &dyn System, made_unix_s: Option<i64>) -> Vec<Status> {
    let floor = made_unix_s.unwrap_or(FLOOR_UNIX_S).max(FLOOR_UNIX_S);
    let ceiling = floor + CEILING_YEARS * 365 * 86_400;
    let now = system.unix_time_s();
    let clock = if (floor..ceiling).contains(&now) {
        Status::new(
            "clock",
            State::Ok,
            format!("the hardware clock said {}", date(now)),
        )
    } else {
        match system.set_unix_time_s(floor) {
            Ok(()) => Status::new(
                "clock",
                State::Degraded,
                format!(
                    "the hardware clock said {}, which cannot be: it is set to {}, the day of the \
                     image; set the clock, or replace the battery",
                    date(now),
                    date(floor)
                ),
            ),
            Err(error) => Status::new(
                "clock",
                State::Failed,
                format!("it says {} and cannot be set: {error}", date(now)),
            ),
        }
    };
    vec![clock, not_synced()]
}

fn not_synced() -> Status {
    let text = "time_synced is false: no time server has been heard yet";
    Status::new("time_synced", State::Waiting, text)
}

/// What the agent has told.
pub(crate) fn synced(by: &str) -> Status {
    let by: String = by.chars().take(200).collect();
    Status::new(
        "time_synced",
        State::Ok,
        format!("time_synced is true: by {by}"),
    )
}

/// A day as people write it (UTC). Civil calendar from a count of days.
pub(crate) fn date(unix_s: i64) -> String {
    let days = unix_s.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fake::Fake;

    #[test]
    fn a_clock_at_1970_is_set_to_the_day_of_the_image() {
        let system = Fake::default();
        system.clock_s.set(12);
        let done = set_floor(&system, Some(FLOOR_UNIX_S + 86_400));
        assert_eq!(system.clock_s.get(), FLOOR_UNIX_S + 86_400);
        assert_eq!(done[0].state, State::Degraded);
        assert!(done[0].text.starts_with(
            "the hardware clock said 1970-01-01, which cannot be: it is set to 2026-11-02"
        ));
        assert!(done[1].text.starts_with("time_synced is false"));
    }

    #[test]
    fn a_clock_that_can_be_right_is_left_alone() {
        let system = Fake::default();
        system.clock_s.set(FLOOR_UNIX_S + 5);
        let done = set_floor(&system, None);
        assert_eq!(done[0].state, State::Ok);
        assert!(system.calls.borrow().is_empty());
        system.clock_s.set(i64::MAX / 2);
        assert_eq!(set_floor(&system, None)[0].state, State::Degraded);
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (unix_s, text) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (FLOOR_UNIX_S, "2026-11-01"),
            (-1, "1969-12-31"),
        ] {
            assert_eq!(date(unix_s), text);
        }
    }
}
