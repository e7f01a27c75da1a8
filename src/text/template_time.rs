//! The present time as C's `strftime` writes it in the C locale, in UTC. Knows no template.

use minijinja::{Error, ErrorKind};

use crate::platform::clock::unix_seconds;

/// Bytes that a date may have; a width can ask for many.
const MAX_FORMAT_BYTES: usize = 4096;

/// The present time, written by `format`.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let failed = |reason: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now fails: {reason}"));
    if format.len() > MAX_FORMAT_BYTES {
        return Err(failed("its format is too long"));
    }
    let seconds = unix_seconds().ok_or_else(|| failed("there is no clock here"))?;
    Ok(strftime(format, seconds))
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];

/// A moment in the parts that fields print.
struct Moment {
    seconds: u64,
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// 0 to 365.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

/// The moment `seconds` after 1970-01-01, by `format`. Fields that C's `strftime` does not have stay as they are written, as glibc does it.
pub(crate) fn strftime(format: &str, seconds: u64) -> String {
    let moment = Moment::new(seconds);
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut field = rest.next();
        let flag = field.filter(|flag| matches!(flag, '-' | '_' | '0' | '^'));
        if flag.is_some() {
            field = rest.next();
        }
        // Alternative forms (`%Ey`, `%Od`) are the plain ones in the C locale.
        if matches!(field, Some('E' | 'O')) {
            field = rest.next();
        }
        match field.and_then(|field| moment.field(field, flag)) {
            Some(written) if flag == Some('^') => text.push_str(&written.to_uppercase()),
            Some(written) => text.push_str(&written),
            None => text.extend(['%'].into_iter().chain(flag).chain(field)),
        }
    }
    text
}

impl Moment {
    fn new(seconds: u64) -> Moment {
        let days = seconds / 86_400;
        let (year, month, day) = civil(days);
        Moment {
            seconds,
            year,
            month,
            day,
            day_of_year: days - days_before_year(year),
            weekday: (days + 4) % 7,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    /// One field; `flag` is `-` for no padding, `_` for spaces, `0` for zeros.
    fn field(&self, field: char, flag: Option<char>) -> Option<String> {
        let padded = |value: u64, width: usize, padding: char| match (flag, padding) {
            (Some('-'), _) => value.to_string(),
            (Some('_'), _) | (None | Some('^'), ' ') => format!("{value:width$}"),
            _ => format!("{value:0width$}"),
        };
        let two = |value: u64| padded(value, 2, '0');
        let of = |names: &[&'static str], index: u64| usize::try_from(index).ok().and_then(|index| names.get(index)).copied().unwrap_or("");
        let (weekday, month) = (of(&DAYS, self.weekday), of(&MONTHS, self.month - 1));
        let short = |name: &str| name.chars().take(3).collect::<String>();
        let half = if self.hour < 12 { "AM" } else { "PM" };
        let hour12 = (self.hour + 11) % 12 + 1;
        let (week_year, week) = self.iso_week();
        let of_fields = |format: &str| strftime(format, self.seconds);
        Some(match field {
            'Y' => self.year.to_string(),
            'C' => two(self.year / 100),
            'y' => two(self.year % 100),
            'G' => week_year.to_string(),
            'g' => two(week_year % 100),
            'm' => two(self.month),
            'd' => two(self.day),
            'e' => padded(self.day, 2, ' '),
            'j' => padded(self.day_of_year + 1, 3, '0'),
            'U' => two((self.day_of_year + 7 - self.weekday) / 7),
            'W' => two((self.day_of_year + 7 - (self.weekday + 6) % 7) / 7),
            'V' => two(week),
            'u' => ((self.weekday + 6) % 7 + 1).to_string(),
            'w' => self.weekday.to_string(),
            'H' => two(self.hour),
            'I' => two(hour12),
            'k' => padded(self.hour, 2, ' '),
            'l' => padded(hour12, 2, ' '),
            'M' => two(self.minute),
            'S' => two(self.second),
            's' => self.seconds.to_string(),
            'p' => half.to_owned(),
            'P' => half.to_lowercase(),
            'A' => weekday.to_owned(),
            'a' => short(weekday),
            'B' => month.to_owned(),
            'b' | 'h' => short(month),
            'D' | 'x' => of_fields("%m/%d/%y"),
            'F' => of_fields("%Y-%m-%d"),
            'T' | 'X' => of_fields("%H:%M:%S"),
            'R' => of_fields("%H:%M"),
            'r' => of_fields("%I:%M:%S %p"),
            'c' => of_fields("%a %b %e %H:%M:%S %Y"),
            'f' => "000000".to_owned(),
            // transformers asks for a time without a zone: Python prints nothing for these.
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    /// ISO 8601's year and week: the week belongs to the year that its Thursday is in.
    fn iso_week(&self) -> (u64, u64) {
        let days = self.seconds / 86_400;
        let thursday = (days + 3).saturating_sub((self.weekday + 6) % 7);
        let (year, ..) = civil(thursday);
        (year, (thursday - days_before_year(year)) / 7 + 1)
    }
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before_year(year: u64) -> u64 {
    let before = year - 1;
    365 * (year - 1970) + (before / 4 - before / 100 + before / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400)
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_c_writes_them() {
        // Of Python's datetime.strftime on glibc, without a time zone.
        let all = "%a|%A|%b|%B|%c|%C|%d|%D|%e|%F|%g|%G|%h|%H|%I|%j|%k|%l|%m|%M|%n|%p|%P|%r|%R|%S|%t|%T|%u|%U|%V|%w|%W|%x|%X|%y|%Y|%z|%Z|%%|%-d|%_m|%-j|%^a|%Q|%";
        for (seconds, expected) in [
            (
                0,
                "Thu|Thursday|Jan|January|Thu Jan  1 00:00:00 1970|19|01|01/01/70| 1|1970-01-01|70|1970|Jan|00|12|001| 0|12|01|00|\n|AM|am|12:00:00 AM|00:00|00|\t|00:00:00|4|00|01|4|00|01/01/70|00:00:00|70|1970|||%|1| 1|1|THU|%Q|%",
            ),
            (
                1709210096,
                "Thu|Thursday|Feb|February|Thu Feb 29 12:34:56 2024|20|29|02/29/24|29|2024-02-29|24|2024|Feb|12|12|060|12|12|02|34|\n|PM|pm|12:34:56 PM|12:34|56|\t|12:34:56|4|08|09|4|09|02/29/24|12:34:56|24|2024|||%|29| 2|60|THU|%Q|%",
            ),
            (
                1735689599,
                "Tue|Tuesday|Dec|December|Tue Dec 31 23:59:59 2024|20|31|12/31/24|31|2024-12-31|25|2025|Dec|23|11|366|23|11|12|59|\n|PM|pm|11:59:59 PM|23:59|59|\t|23:59:59|2|52|01|2|53|12/31/24|23:59:59|24|2024|||%|31|12|366|TUE|%Q|%",
            ),
            (
                1483228800,
                "Sun|Sunday|Jan|January|Sun Jan  1 00:00:00 2017|20|01|01/01/17| 1|2017-01-01|16|2016|Jan|00|12|001| 0|12|01|00|\n|AM|am|12:00:00 AM|00:00|00|\t|00:00:00|7|01|52|0|00|01/01/17|00:00:00|17|2017|||%|1| 1|1|SUN|%Q|%",
            ),
            (
                1767225599,
                "Wed|Wednesday|Dec|December|Wed Dec 31 23:59:59 2025|20|31|12/31/25|31|2025-12-31|26|2026|Dec|23|11|365|23|11|12|59|\n|PM|pm|11:59:59 PM|23:59|59|\t|23:59:59|3|52|01|3|52|12/31/25|23:59:59|25|2025|||%|31|12|365|WED|%Q|%",
            ),
            (
                1798761600,
                "Fri|Friday|Jan|January|Fri Jan  1 00:00:00 2027|20|01|01/01/27| 1|2027-01-01|26|2026|Jan|00|12|001| 0|12|01|00|\n|AM|am|12:00:00 AM|00:00|00|\t|00:00:00|5|00|53|5|00|01/01/27|00:00:00|27|2027|||%|1| 1|1|FRI|%Q|%",
            ),
        ] {
            assert_eq!(strftime(all, seconds), expected, "{seconds}");
        }
    }
}
