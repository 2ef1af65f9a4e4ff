package auth

// CheckScope says what is wrong with a scope token (RFC 6749, 3.3).
func CheckScope(s string) error {
	if s == "" || len(s) > 128 {
		return Invalidf("scope %q: want 1 to 128 characters", s)
	}
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return Invalidf("scope %q: want visible ASCII without quotes and backslashes", s)
		}
	}
	return nil
}
