//! Where a PCI function is.

use std::fmt;
use std::str::FromStr;

use crate::{PciError, PciErrorKind};

/// Domain, bus, device and function: `0000:01:00.0`. The domain may be left out when read from
/// text, and is 0 then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The domain (segment); those that VMD makes are above ffffh.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, 0 to 31.
    pub device: u8,
    /// The function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl FromStr for Address {
    type Err = PciError;

    fn from_str(text: &str) -> Result<Address, PciError> {
        parse(text).ok_or_else(|| {
            PciError::new(
                PciErrorKind::OutOfRange,
                format!("`{text}` is no PCI address; give one such as 0000:01:00.0 or 01:00.0"),
            )
        })
    }
}

fn parse(text: &str) -> Option<Address> {
    let (front, function) = text.split_once('.')?;
    let mut fields = front.rsplit(':');
    let device = hex(fields.next()?, 2)?;
    let bus = hex(fields.next()?, 2)?;
    let domain = fields.next().map_or(Some(0), |domain| hex(domain, 8))?;
    let function = hex(function, 1)?;
    let is_good = fields.next().is_none() && device < 32 && function < 8;
    is_good.then_some(Address {
        domain,
        bus: bus as u8,
        device: device as u8,
        function: function as u8,
    })
}

/// A number of one to `most` hexadecimal digits, without a sign.
fn hex(text: &str, most: usize) -> Option<u32> {
    let digits = (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u32::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print() {
        for (text, printed) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("ff:1f.7", "0000:ff:1f.7"),
            ("10000:e1:00.1", "10000:e1:00.1"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            ":",
            ".",
            "01:00",
            "01:00.8",
            "01:20.0",
            "1:2:3:4.0",
            "../x:00.0",
            "+1:00.0",
            "001:00.0",
            "01:00.0 ",
            "01:00.-1",
            "123456789:01:00.0",
            "01::00.0",
        ] {
            let error = text.parse::<Address>().expect_err(text);
            assert!(error.to_string().contains("0000:01:00.0"), "{error}");
        }
    }
}
