//! `pombo`: see [`pombo_spooler::cli`].

fn main() -> std::process::ExitCode {
    pombo_proto::service::install_tls();
    pombo_spooler::cli::main()
}
