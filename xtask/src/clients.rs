//! `cargo xtask clients`: clients of the server's APIs, from npm and PyPI, against a server on the host and one on the GPU.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::steps::{self, Failure, Result, announce};
use crate::{machine, model, python, web};

/// The tests and the lists of what they need.
const FOLDER: &str = "tests/clients";
const REQUIREMENTS: &str = "tests/clients/requirements.txt";

/// Builds the program, then as [`check`].
pub fn run() -> Result<()> {
    machine::ensure_adapter()?;
    steps::run(&mut steps::cargo(&["build", "--release"]))?;
    check(&model::ensure()?)
}

/// Runs the tests with `model`, served by the program as it is built, on each kind of device.
pub fn check(model: &Path) -> Result<()> {
    let node = machine::ensure_node()?;
    let folder = steps::root().join(FOLDER);
    web::ensure_packages(&folder)?;
    let python = python::environment(&steps::target().join("clients"), &[], REQUIREMENTS)?;
    // What responses look like does not depend on the device.
    for (device, selection) in [("cpu", ""), ("gpu", "not specified")] {
        let server = Server::start(model, device)?;
        let tests = |command: &mut Command| steps::run(command.current_dir(&folder).env("TIERFLOW_SERVER", &server.address));
        tests(Command::new(&node).args(["--test", "--test-reporter=spec", "clients.test.mjs"]))?;
        // A table of prices is not looked for in the network.
        let mut pytest = Command::new(&python);
        pytest.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("PYTHONDONTWRITEBYTECODE", "1");
        tests(pytest.args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-k", selection, "."]))?;
    }
    Ok(())
}

/// A server that runs until this is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Serves `model` under the name `model`; where a request says nothing of sampling, the likeliest tokens are taken.
    fn start(model: &Path, device: &str) -> Result<Server> {
        let mut command = Command::new(steps::tierflow());
        command.arg("serve").arg(model).args(["--alias", "model", "--port", "0", "-c", "2048", "--temp", "0", "--device", device]);
        command.env("TIERFLOW_CACHE", steps::target().join("test-cache")).stderr(Stdio::piped());
        machine::ensure_runtime_folder(&mut command);
        announce(&format!("serving the model on {device}"));
        let mut child = command.spawn().map_err(|error| Failure::new(format!("cannot start the server: {error}")))?;
        let stderr = child.stderr.take().map(BufReader::new);
        let mut server = Server { child, address: String::new() };
        let mut lines = stderr.into_iter().flat_map(BufRead::lines).map_while(std::io::Result::ok);
        let mut said = String::new();
        for line in lines.by_ref() {
            if let Some((_, address)) = line.split_once(" is served on ") {
                server.address = address.to_owned();
                // What it says later is read, so that it never waits for a reader.
                std::thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));
                return Ok(server);
            }
            said.push_str(&line);
            said.push('\n');
        }
        Err(Failure::new(format!("the server ended before it had an address:\n{said}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
