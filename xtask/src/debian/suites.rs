//! Which suites to look in, and where they are.
//!
//! In: the package indexes that the machine's apt knows. Out: a sources list
//! for the private apt. Pure. No host name is written down here: the machine's
//! own choice of a Debian archive holds for the other suites too.

/// The two repositories that Debian publishes its suites in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repository {
    Debian,
    Security,
}

/// A suite with packages that the build or the lab wants.
struct Suite {
    name: &'static str,
    repository: Repository,
    /// The suite gets no more updates, so that the expiry date of its release
    /// file lies in the past while its signature is still good.
    frozen: bool,
}

/// How many suites there are.
pub(super) const COUNT: usize = 7;

const SUITES: [Suite; COUNT] = [
    Suite {
        name: "trixie",
        repository: Repository::Debian,
        frozen: false,
    },
    Suite {
        name: "trixie-backports",
        repository: Repository::Debian,
        frozen: false,
    },
    Suite {
        name: "trixie-security",
        repository: Repository::Security,
        frozen: false,
    },
    Suite {
        name: "bookworm",
        repository: Repository::Debian,
        frozen: false,
    },
    Suite {
        name: "bookworm-security",
        repository: Repository::Security,
        frozen: false,
    },
    Suite {
        name: "bullseye",
        repository: Repository::Debian,
        frozen: true,
    },
    Suite {
        name: "bullseye-security",
        repository: Repository::Security,
        frozen: true,
    },
];

/// The format of `apt-get indextargets` that [`sources_list`] reads.
pub(super) const INDEX_FORMAT: &str = "$(REPO_URI) $(LABEL)";

/// The sources list for all suites, or `None` if the machine's apt has no
/// Debian archive.
pub(super) fn sources_list(indexes: &str, keyring: &str) -> Option<String> {
    let debian = repository_uri(indexes, "debian", "Debian")?;
    let security = repository_uri(indexes, "debian-security", "Debian-Security");
    let lines = SUITES.iter().filter_map(|suite| {
        let uri = match suite.repository {
            Repository::Debian => debian,
            Repository::Security => security?,
        };
        let Suite { name, frozen, .. } = suite;
        let expiry = if *frozen { " check-valid-until=no" } else { "" };
        Some(format!(
            "deb [arch=amd64 signed-by={keyring}{expiry}] {uri} {name} main\n"
        ))
    });
    Some(lines.collect())
}

/// The first repository that ends like Debian's do or says that it is one: a
/// mirror keeps the ending, a dated snapshot only the label, and the label is
/// unknown until the machine's first `apt-get update`.
fn repository_uri<'a>(indexes: &'a str, ending: &str, label: &str) -> Option<&'a str> {
    let repositories = indexes
        .lines()
        .map(|line| line.split_once(' ').unwrap_or((line, "")));
    let ends = |uri: &str| uri.trim_end_matches('/').rsplit('/').next() == Some(ending);
    repositories
        .filter(|(uri, said)| ends(uri) || *said == label)
        .map(|(uri, _)| uri)
        .next()
}

/// The suites of which `lists`, the names of the files that apt fetched, has no
/// release file.
pub(super) fn absent(lists: &[String]) -> Vec<&'static str> {
    let fetched = |suite: &Suite| {
        let [signed, plain] =
            ["InRelease", "Release"].map(|file| format!("_dists_{}_{file}", suite.name));
        lists
            .iter()
            .any(|list| list.ends_with(&signed) || list.ends_with(&plain))
    };
    SUITES
        .iter()
        .filter(|suite| !fetched(suite))
        .map(|suite| suite.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_of_a_mirror_are_taken_from_its_two_repositories() {
        let indexes = "http://a.example/docker Docker\n\
                       http://a.example/debian-security/ Debian-Security\n\
                       http://a.example/debian/ Debian\n";
        let list = sources_list(indexes, "/k.gpg").unwrap();
        assert!(
            list.contains(
                "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian/ trixie main\n"
            )
        );
        assert!(list.contains(" http://a.example/debian-security/ bookworm-security main\n"));
        assert_eq!(list.lines().count(), SUITES.len());
    }

    #[test]
    fn archive_is_found_by_name_before_the_first_update() {
        let list = sources_list("http://a.example/debian \n", "/k.gpg").unwrap();
        assert!(list.contains(" http://a.example/debian bullseye main\n"));
        assert!(!list.contains("-security main"));
    }

    #[test]
    fn machine_without_debian_archive_gets_no_list() {
        assert_eq!(
            sources_list("http://a.example/ubuntu/ Ubuntu\n", "/k.gpg"),
            None
        );
    }

    #[test]
    fn suite_without_release_file_is_absent() {
        let lists = [
            "a_debian_dists_trixie_InRelease",
            "a_debian_dists_bullseye_Release",
        ];
        let absent = absent(&lists.map(String::from));
        assert!(!absent.contains(&"trixie") && !absent.contains(&"bullseye"));
        assert!(absent.contains(&"trixie-backports") && absent.contains(&"bookworm"));
    }
}
