//! The address to listen on as people write it: `0.0.0.0`, `::`, `[::1]`, `localhost`.
//!
//! Invariant: whatever is printed here can be given back as a setting, and what is not a host never gets past this file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A host without a port: an address of a network interface, or a name that stands for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(String);

impl Host {
    /// As the operating system takes it, without brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Host and port as in a URL: an IPv6 address stands in brackets.
    #[must_use]
    pub fn with_port(&self, port: u16) -> String {
        if self.0.contains(':') {
            format!("[{}]:{port}", self.0)
        } else {
            format!("{}:{port}", self.0)
        }
    }

    /// The host under which a program on the same machine reaches a server that listens here: "every interface" is an
    /// address to listen on, and none to connect to.
    #[must_use]
    pub fn for_clients(&self) -> Self {
        match self.0.parse() {
            Ok(address) => Self(reachable(address).to_string()),
            Err(_) => self.clone(),
        }
    }
}

/// Where a program on this machine reaches a server that listens on `address`, as in a URL.
#[must_use]
pub fn for_clients(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(reachable(address.ip()), address.port())
}

fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

impl Default for Host {
    /// Every interface.
    fn default() -> Self {
        Self(Ipv4Addr::UNSPECIFIED.to_string())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let example = "write an address such as 0.0.0.0, 127.0.0.1, :: or ::1";
        if text.contains("://") {
            return Err(format!("'{text}' is a URL; {example}"));
        }
        if text == "*" {
            return Err(
                "'*' is not an address; write 0.0.0.0 for every interface, or :: for IPv6 as well"
                    .to_owned(),
            );
        }
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(address) = bare {
            return match ipv6(address) {
                Some(host) => host,
                None => Err(format!("'{text}' is not an IPv6 address; {example}")),
            };
        }
        if let Some(host) = ipv6(text) {
            return host;
        }
        if let Some((host, port)) = text.rsplit_once(':')
            && !port.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && (!host.contains(':') || host.ends_with(']'))
        {
            return Err(format!(
                "'{text}' holds a port; write the host here and {port} as --port (PORT)"
            ));
        }
        let numeric = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        if !text.is_empty() && text.bytes().all(numeric) {
            return match text.parse::<Ipv4Addr>() {
                Ok(address) if address.is_multicast() || address.is_broadcast() => {
                    Err(of_no_machine(text))
                }
                Ok(address) => Ok(Self(address.to_string())),
                Err(_) => Err(format!("'{text}' is not an IPv4 address; {example}")),
            };
        }
        if is_name(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "'{text}' is neither an address nor a name; {example}"
        ))
    }
}

fn of_no_machine(text: &str) -> String {
    format!(
        "'{text}' is an address of many machines at once, which none can listen on alone; write one of this machine, or 0.0.0.0 for all of them"
    )
}

/// An IPv6 address, perhaps with the interface that it is meant on (`fe80::1%eth0`), or what is wrong with it; nothing if
/// the text is none.
fn ipv6(text: &str) -> Option<Result<Host, String>> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    Some(match zone {
        _ if address.is_multicast() => Err(of_no_machine(text)),
        None if address.is_unicast_link_local() => Err(format!(
            "'{text}' is link-local, so that it is complete only with the network interface; write it as {address}%eth0"
        )),
        None => Ok(Host(address.to_string())),
        Some(_) if !address.is_unicast_link_local() => Err(format!(
            "'{text}' names a network interface, which only link-local addresses (fe80::) have; write {address}"
        )),
        Some(zone) if is_name(zone) => Ok(Host(format!("{address}%{zone}"))),
        Some(_) => return None,
    })
}

/// Whether a resolver may know it: dot-separated labels of letters, digits, hyphens and, in container networks,
/// underscores.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= 253 && text.trim_end_matches('.').split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_as_it_is_printed() {
        for (text, printed, with_port) in [
            ("0.0.0.0", "0.0.0.0", "0.0.0.0:80"),
            ("::", "::", "[::]:80"),
            ("[::]", "::", "[::]:80"),
            ("[::1]", "::1", "[::1]:80"),
            ("0:0:0:0:0:0:0:1", "::1", "[::1]:80"),
            ("FE80::1%eth0", "fe80::1%eth0", "[fe80::1%eth0]:80"),
            ("localhost", "localhost", "localhost:80"),
            (" my_pod-1.svc ", "my_pod-1.svc", "my_pod-1.svc:80"),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host.to_string(), printed);
            assert_eq!(host.with_port(80), with_port);
            assert_eq!(printed.parse(), Ok(host));
        }
    }

    #[test]
    fn what_is_not_a_host_is_told_with_what_it_is_instead() {
        for (text, part) in [
            ("http://0.0.0.0", "is a URL"),
            ("0.0.0.0:8000", "8000 as --port (PORT)"),
            ("[::1]:8000", "8000 as --port (PORT)"),
            ("localhost:80", "80 as --port (PORT)"),
            ("*", "0.0.0.0 for every interface"),
            ("256.1.1.1", "is not an IPv4 address"),
            ("127.1", "is not an IPv4 address"),
            ("[localhost]", "is not an IPv6 address"),
            ("::1::2", "neither an address nor a name"),
            ("my host", "neither an address nor a name"),
            ("", "neither an address nor a name"),
            ("a..b", "neither an address nor a name"),
            ("fe80::1", "write it as fe80::1%eth0"),
            ("[fe80::1]", "write it as fe80::1%eth0"),
            ("::1%lo", "write ::1"),
            ("ff02::1", "of many machines"),
            ("224.0.0.1", "of many machines"),
            ("255.255.255.255", "of many machines"),
        ] {
            let error = text.parse::<Host>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn every_interface_is_reached_by_the_loopback_of_its_family() {
        for (text, reached) in [
            ("0.0.0.0", "127.0.0.1"),
            ("::", "::1"),
            ("10.1.2.3", "10.1.2.3"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(
                text.parse::<Host>().unwrap().for_clients().as_str(),
                reached
            );
        }
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(for_clients(address("[::]:80")), address("[::1]:80"));
        assert_eq!(for_clients(address("0.0.0.0:80")), address("127.0.0.1:80"));
    }
}
