//! The program: runs the command line, prints its error, sets its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tierflow::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
