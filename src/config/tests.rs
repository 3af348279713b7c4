//! What the command line and the environment together come to.

use super::flags::CommandLine;
use super::*;

fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Command, String> {
    let arguments = ["model-serving"]
        .iter()
        .chain(arguments)
        .map(OsString::from);
    let variable = |name: &str| {
        let mut variables = environment.iter();
        let found = variables.find(|(key, _)| *key == name);
        found.map(|(_, value)| OsString::from(value))
    };
    Command::read(arguments, variable).map_err(|error| error.to_string())
}

fn config(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, String> {
    match read(arguments, environment)? {
        Command::Serve(start) => Ok(start.config),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_well_formed() {
    CommandLine::command().debug_assert();
    ServeFlags::command().debug_assert();
    let default = config(&[], &[]).unwrap();
    assert_eq!(default.http.max_body_size, DEFAULT_BODY);
}

#[test]
fn serve_is_the_default_command() {
    assert_eq!(
        config(&["serve", "--port", "1"], &[]).unwrap(),
        config(&["--port", "1"], &[]).unwrap()
    );
    let port = [("PORT", "1")];
    assert_eq!(config(&["serve"], &port), config(&[], &port));
}

/// Every flag of every command with its variable, and a value that it takes beside its default.
#[test]
fn an_empty_variable_is_as_if_it_were_not_there() {
    let mut root = CommandLine::command();
    root.build();
    let mut seen = 0;
    for (command, arguments) in [
        (root.clone(), &[][..]),
        (root.find_subcommand("serve").unwrap().clone(), &["serve"]),
        (
            root.find_subcommand("inspect").unwrap().clone(),
            &["inspect", "m.onnx"],
        ),
        (
            root.find_subcommand("tune").unwrap().clone(),
            &["tune", "m.onnx"],
        ),
        (
            root.find_subcommand("healthcheck").unwrap().clone(),
            &["healthcheck"],
        ),
    ] {
        let plain = format!("{:?}", read(arguments, &[]).unwrap());
        for argument in command.get_arguments() {
            let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else {
                continue;
            };
            let variable = variable.to_str().unwrap();
            let empty = read(arguments, &[(variable, "")]);
            assert_eq!(format!("{:?}", empty.unwrap()), plain, "{variable}");
            let flag = format!("--{flag}=");
            let line: Vec<&str> = arguments.iter().copied().chain([flag.as_str()]).collect();
            let error = read(&line, &[]).unwrap_err();
            assert!(error.contains("needs a value that is not empty"), "{error}");
            assert!(error.contains(variable), "{error}");
            seen += 1;
        }
    }
    assert!(seen > 70, "{seen}");
    for variable in ["AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"] {
        assert_eq!(config(&[], &[(variable, "")]), config(&[], &[]));
    }
}

#[test]
fn the_flag_wins_over_its_variable_even_if_that_is_wrong() {
    let wrong = [("PORT", "x"), ("LOG_LEVEL", "loud")];
    for arguments in [
        &["--port", "9", "--log-level", "warn"][..],
        &["--port=9", "--log-level=warn"],
        &["serve", "--port=9", "--log-level", "warn"],
    ] {
        assert_eq!(config(arguments, &wrong).unwrap().port, 9);
    }
    assert!(config(&["--port", "9"], &wrong).is_err());
}

#[test]
fn words_and_units_ignore_case() {
    let environment = [
        ("DEVICE", "CPU"),
        ("LOG_LEVEL", "INFO"),
        ("LOG_FORMAT", "JSON"),
        ("TF32", "Off"),
        ("TUNING_TIME", "OFF"),
        ("WATCH_MODEL", "Off"),
        ("MAX_BODY_SIZE", "64mib"),
        ("REQUEST_TIMEOUT", "30S"),
    ];
    let plain = config(&["--device=cpu", "--tuning-time=off"], &[]).unwrap();
    assert_eq!(config(&[], &environment).unwrap(), plain);
}

#[test]
fn a_message_says_where_the_value_came_from() {
    assert_eq!(
        read(&["--port", "x"], &[("PORT", "1")]).unwrap_err(),
        "the flag --port (variable PORT): 'x' is not a port; write a number from 0 to 65535, for example 8000"
    );
    assert_eq!(
        read(&["inspect", "m.onnx"], &[("DEVICE", "gpu")]).unwrap_err(),
        "the variable DEVICE (flag --device): 'gpu' is not a device; write auto, cpu, cuda, cuda:N (for example cuda:0) or openvino"
    );
    let unpaired = [
        OsString::from("model-serving"),
        OsString::from("--device"),
        std::os::unix::ffi::OsStringExt::from_vec(b"c\xffu".to_vec()),
    ];
    let error = Command::read(unpaired, |_| None).unwrap_err().to_string();
    assert_eq!(
        error,
        "the flag --device (variable DEVICE): 'c\u{fffd}u' is not UTF-8 text"
    );
}

#[test]
fn help_and_version_are_had_whatever_the_environment_says() {
    let wrong = [("PORT", "x"), ("AIP_HTTP_PORT", "y")];
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["help", "inspect"],
        &["inspect", "--help"],
        &["serve", "-h"],
    ] {
        let command = read(arguments, &wrong).unwrap();
        assert!(matches!(command, Command::Help(_)), "{arguments:?}");
    }
    for arguments in [&["--version"][..], &["-V"], &["inspect", "-V"]] {
        let command = read(arguments, &wrong).unwrap();
        assert!(matches!(command, Command::Version), "{arguments:?}");
    }
}

#[test]
fn a_health_check_asks_where_the_server_listens() {
    for (arguments, environment, url) in [
        (&[][..], &[][..], "http://127.0.0.1:8000/health"),
        (&[], &[("PORT", "9")], "http://127.0.0.1:9/health"),
        (
            &[],
            &[("AIP_HTTP_PORT", "8080")],
            "http://127.0.0.1:8080/health",
        ),
        (
            &[],
            &[("AIP_HTTP_PORT", "8080"), ("PORT", "9")],
            "http://127.0.0.1:9/health",
        ),
        (
            &[],
            &[("HOST", "::"), ("PORT", "9"), ("ADMIN_PORT", "10")],
            "http://[::1]:10/health",
        ),
        (&["--host", "10.0.0.7"], &[], "http://10.0.0.7:8000/health"),
        (
            &["--admin-port", "11"],
            &[("ADMIN_PORT", "10")],
            "http://127.0.0.1:11/health",
        ),
        (&["http://h/x"], &[("PORT", "9")], "http://h/x"),
    ] {
        let arguments: Vec<&str> = ["healthcheck"].iter().chain(arguments).copied().collect();
        match read(&arguments, environment).unwrap() {
            Command::Healthcheck(target) => assert_eq!(target.to_string(), url),
            other => panic!("{other:?}"),
        }
    }
    assert!(read(&["healthcheck"], &[("PORT", "0")]).is_err());
}

#[test]
fn platforms_name_their_port_and_routes() {
    let vertex = [
        ("AIP_HTTP_PORT", "8080"),
        ("AIP_HEALTH_ROUTE", "/v1/ready"),
        ("AIP_PREDICT_ROUTE", "/predict"),
    ];
    let chosen = config(&[], &vertex).unwrap();
    assert_eq!(
        (chosen.port, chosen.http.health_routes),
        (8080, vec!["/v1/ready".to_owned()])
    );
    assert_eq!(config(&["--port", "9"], &vertex).unwrap().port, 9);
    for route in ["predict", "/{x}", "/a b", "/", "/a/:b", "/*x"] {
        assert!(
            config(&[], &[("AIP_PREDICT_ROUTE", route)]).is_err(),
            "{route}"
        );
    }
    assert!(config(&[], &[("AIP_HTTP_PORT", "x")]).is_err());
}
