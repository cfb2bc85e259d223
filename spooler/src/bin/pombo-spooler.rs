//! The spooler's process.

fn main() -> std::process::ExitCode {
    pombo_spooler::process::main()
}
