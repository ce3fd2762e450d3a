//! Who may do what: the role in a client's certificate.

use std::fmt;

/// What a client may do. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads state and logs.
    Reader,
    /// Runs the node: storage, services, restarts.
    Operator,
    /// Decides who may do what, and destroys data in bulk.
    Admin,
}

/// What an Organization of a certificate's subject begins with when it names a role.
pub const PREFIX: &str = "adit:";

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Reader, Role::Operator, Role::Admin];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// The Organization that names it: `adit:admin`.
    #[must_use]
    pub fn organization(self) -> String {
        format!("{PREFIX}{}", self.name())
    }

    /// The role that an Organization names. Exactly as written: no other case, no spaces.
    #[must_use]
    pub fn of_organization(organization: &str) -> Option<Role> {
        let name = organization.strip_prefix(PREFIX)?;
        Role::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The role of a subject with these Organizations: the lowest that is named. A certificate that
    /// says two things is not given the benefit of the doubt.
    #[must_use]
    pub fn of_organizations<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Role> {
        names.into_iter().filter_map(Role::of_organization).min()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_read_exactly() {
        for role in Role::ALL {
            assert_eq!(Role::of_organization(&role.organization()), Some(role));
        }
        for wrong in [
            "",
            "adit:",
            "admin",
            "adit:Admin",
            "adit:admin ",
            "adit:root",
        ] {
            assert_eq!(Role::of_organization(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn of_two_roles_the_lower_holds() {
        let names = ["Example Inc.", "adit:admin", "adit:reader"];
        assert_eq!(Role::of_organizations(names), Some(Role::Reader));
        assert_eq!(Role::of_organizations(["Example Inc."]), None);
        assert!(Role::Reader < Role::Operator && Role::Operator < Role::Admin);
    }
}
