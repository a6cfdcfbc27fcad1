//! The time of a log record: RFC 3339, UTC, nine fractional digits.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of `2026-01-02T03:04:05.123456789Z`.
pub const STAMP_LEN: usize = 30;

/// A formatted time. The date is worked out once a second.
#[derive(Debug)]
pub struct Stamp {
    second: Option<u64>,
    text: [u8; STAMP_LEN],
}

impl Default for Stamp {
    fn default() -> Stamp {
        Stamp {
            second: None,
            text: *b"1970-01-01T00:00:00.000000000Z",
        }
    }
}

impl Stamp {
    /// Formats `now`. A clock before 1970 or after 9999 shows the nearest time it can.
    pub fn set(&mut self, now: SystemTime) {
        const LAST_SECOND: u64 = 253_402_300_799;
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = since.as_secs().min(LAST_SECOND);
        if self.second != Some(second) {
            self.second = Some(second);
            let (year, month, day) = date(second / 86_400);
            let time = second % 86_400;
            self.digits(0, 4, year);
            self.digits(5, 2, month);
            self.digits(8, 2, day);
            self.digits(11, 2, time / 3600);
            self.digits(14, 2, time / 60 % 60);
            self.digits(17, 2, time % 60);
        }
        self.digits(20, 9, u64::from(since.subsec_nanos()));
    }

    /// The text.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn digits(&mut self, at: usize, count: usize, mut value: u64) {
        for digit in self.text[at..at + count].iter_mut().rev() {
            // A remainder by ten is one digit.
            *digit = b'0' + u8::try_from(value % 10).unwrap_or_default();
            value /= 10;
        }
    }
}

/// Year, month and day of a day counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // Years are counted from March of year 0, so that the leap day comes last: a 400-year era has
    // 146097 days, and the months from March on begin at day (153 m + 2) / 5.
    let day = days + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn text(seconds: u64, nanos: u32) -> String {
        let mut stamp = Stamp::default();
        stamp.set(UNIX_EPOCH + Duration::new(seconds, nanos));
        String::from_utf8(stamp.text().to_vec()).unwrap()
    }

    #[test]
    fn known_times() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_399, 1), "2000-02-28T23:59:59.000000001Z");
        assert_eq!(text(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(
            text(1_764_000_000, 123_456_789),
            "2025-11-24T16:00:00.123456789Z"
        );
        assert_eq!(
            text(4_107_542_399, 999_999_999),
            "2100-02-28T23:59:59.999999999Z"
        );
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(
            text(u64::from(u32::MAX) * 1000, 5),
            "9999-12-31T23:59:59.000000005Z"
        );
    }

    #[test]
    fn a_clock_before_the_epoch_is_the_epoch() {
        let mut stamp = Stamp::default();
        stamp.set(UNIX_EPOCH - Duration::from_secs(5));
        assert_eq!(stamp.text(), b"1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..100_000 {
            assert_eq!(date(days), (year, month, day), "day {days}");
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
