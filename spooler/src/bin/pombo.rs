//! `pombo`: see [`pombo_spooler::cli`].

fn main() -> std::process::ExitCode {
    pombo_spooler::cli::main()
}
