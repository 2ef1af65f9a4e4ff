package problem_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/problem"
)

func TestWrite(t *testing.T) {
	w, err := problem.NewWriter("orders", "https://errors.example/")
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[auth.Code]struct {
		status    int
		challenge string
		retry     string
	}{
		auth.CodeCredentialInQuery: {400, "", ""},
		auth.CodeInvalidRequest:    {400, "", ""},
		auth.CodeMissingCredential: {401, `Bearer realm="orders"`, ""},
		auth.CodeInvalidCredential: {401, `Bearer realm="orders", error="invalid_token"`, ""},
		auth.CodeWrongEnvironment:  {403, `Bearer realm="orders"`, ""},
		auth.CodeInsufficientScope: {403, `Bearer realm="orders", error="insufficient_scope", scope="a b"`, ""},
		auth.CodeNetworkNotAllowed: {403, `Bearer realm="orders"`, ""},
		auth.CodeNotAllowed:        {403, `Bearer realm="orders"`, ""},
		auth.CodeUnavailable:       {503, "", "1"},
		"nobody_knows":             {500, "", ""},
	} {
		rec := httptest.NewRecorder()
		if err := w.Write(rec, http.MethodGet, &auth.Refusal{Code: code, Detail: "<d>", Reason: "secret reason", Scopes: "a b"}, "urn:uuid:1"); err != nil {
			t.Fatal(err)
		}
		h := rec.Header()
		if rec.Code != want.status || h.Get("WWW-Authenticate") != want.challenge || h.Get("Retry-After") != want.retry {
			t.Errorf("%s: %d %v", code, rec.Code, h)
		}
		if h.Get("Content-Type") != "application/problem+json" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", code, h)
		}
		var body map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		if body["type"] != "https://errors.example/"+string(code) || body["status"] != float64(want.status) || body["detail"] != "<d>" ||
			body["instance"] != "urn:uuid:1" || body["code"] != string(code) || len(body) != 6 {
			t.Errorf("%s: %v", code, body)
		}
	}
	rec := httptest.NewRecorder()
	if err := w.Write(rec, http.MethodHead, &auth.Refusal{Code: auth.CodeMissingCredential}, "x"); err != nil || rec.Body.Len() > 0 || rec.Code != 401 {
		t.Errorf("HEAD: %d with %d bytes, %v", rec.Code, rec.Body.Len(), err)
	}
}
