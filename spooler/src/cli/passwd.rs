//! `pombo passwd`: one line of a listener's users file. The password comes from the terminal or from standard input, never
//! from the command line, where everybody on the machine could read it.

use std::io::{IsTerminal, Write};

use clap::Args;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use pombo_proto::scram::{self, Password, Verifier};

use super::Error;

#[derive(Args)]
pub(super) struct Arguments {
    /// The name to log in with.
    user: String,
    /// Addresses that the user may send as, where the listener asks for that.
    addresses: Vec<String>,
    /// The work that a login costs, and a guess: 4096 to 1000000.
    #[arg(long, default_value_t = scram::ITERATIONS)]
    iterations: u32,
}

pub(super) fn passwd(arguments: &Arguments) -> Result<bool, Error> {
    let usage = |error: scram::Error| Error::Usage(error.to_string());
    let name = scram::prepared(&arguments.user).map_err(usage)?;
    // A colon ends the name, and a number sign would make a comment of it.
    let fits = |text: &str| !text.contains(char::is_whitespace) && !text.starts_with('#');
    if name.contains(':')
        || !arguments
            .addresses
            .iter()
            .chain([&name])
            .all(|text| fits(text))
    {
        return Err(Error::Usage(
            "names hold no colons and no blanks".to_owned(),
        ));
    }
    let password = read().map_err(|error| Error::Usage(format!("no password: {error}")))?;
    let verifier =
        Verifier::with_iterations(password.expose(), arguments.iterations).map_err(usage)?;
    let mut line = format!("{name}:{verifier}");
    for address in &arguments.addresses {
        line.push(' ');
        line.push_str(address);
    }
    println!("{line}");
    Ok(true)
}

fn read() -> std::io::Result<Password> {
    let terminal = std::io::stdin().is_terminal();
    let first = line(terminal.then_some("Password: "))?;
    if terminal && line(Some("Again: "))?.expose() != first.expose() {
        return Err(std::io::Error::other("they differ"));
    }
    Ok(first)
}

/// One line of standard input; unseen, if it is typed.
fn line(prompt: Option<&str>) -> std::io::Result<Password> {
    let _silence = match prompt {
        Some(prompt) => {
            eprint!("{prompt}");
            std::io::stderr().flush()?;
            Some(Silence::begin()?)
        }
        None => None,
    };
    let mut text = String::new();
    std::io::stdin().read_line(&mut text)?;
    let length = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(length);
    Ok(Password::from(text))
}

/// While it lives, the terminal does not show what is typed.
struct Silence(Termios);

impl Silence {
    fn begin() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        silent.local_flags.insert(LocalFlags::ECHONL);
        tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // The terminal is gone: then there is nothing to restore.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &self.0);
    }
}
