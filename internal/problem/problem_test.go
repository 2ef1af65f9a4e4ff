package problem_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/problem"
)

func TestWrite(t *testing.T) {
	w, err := problem.NewWriter("orders", "https://errors.example/", nil)
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

		auth.CodeUpstreamUnavailable: {503, "", "1"},
		auth.CodeUpstreamRefused:     {502, "", ""},
		"nobody_knows":               {500, "", ""},
	} {
		rec := httptest.NewRecorder()
		if err := w.Write(rec, httptest.NewRequest(http.MethodGet, "/", nil), &auth.Refusal{Code: code, Detail: "<d>", Reason: "secret reason", Scopes: "a b"}, "urn:uuid:1"); err != nil {
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
	for after, want := range map[time.Duration]string{0: "1", time.Millisecond: "1", 1500 * time.Millisecond: "2", time.Minute: "60", -time.Second: "1"} {
		rec := httptest.NewRecorder()
		err := w.Write(rec, httptest.NewRequest(http.MethodGet, "/", nil), &auth.Refusal{Code: auth.CodeUpstreamUnavailable, RetryAfter: after}, "x")
		if got := rec.Header().Get("Retry-After"); err != nil || got != want {
			t.Errorf("%s: Retry-After %q, %v", after, got, err)
		}
	}
	rec := httptest.NewRecorder()
	if err := w.Write(rec, httptest.NewRequest(http.MethodHead, "/", nil), &auth.Refusal{Code: auth.CodeMissingCredential}, "x"); err != nil || rec.Body.Len() > 0 || rec.Code != 401 {
		t.Errorf("HEAD: %d with %d bytes, %v", rec.Code, rec.Body.Len(), err)
	}
}

func TestWrite_GRPC(t *testing.T) {
	w, err := problem.NewWriter("", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for kind, grpc := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc; charset=utf-8": true, "application/grpc-web+proto": true, "application/grpc-web-text": true,
		"application/grpcish": false, "application/json": false, "": false, "application/connect+proto": false,
	} {
		for code, status := range map[auth.Code]string{
			auth.CodeCredentialInQuery: "3", auth.CodeMissingCredential: "16", auth.CodeInvalidCredential: "16", auth.CodeInsufficientScope: "7", auth.CodeUnavailable: "14", auth.CodeTooEarly: "14",
		} {
			r := httptest.NewRequest(http.MethodPost, "/pkg.Service/Method", nil)
			r.ProtoMajor = 2
			if kind != "" {
				r.Header.Set("Content-Type", kind)
			}
			rec := httptest.NewRecorder()
			if err := w.Write(rec, r, &auth.Refusal{Code: code, Detail: "50 % of é"}, "urn:uuid:x"); err != nil {
				t.Fatal(err)
			}
			h := rec.Header()
			if !grpc {
				if rec.Code != problem.Status(code) || h.Get("Grpc-Status") != "" || h.Get("Content-Type") != "application/problem+json" {
					t.Errorf("%s: %d %v", kind, rec.Code, h)
				}
				continue
			}
			if rec.Code != 200 || rec.Body.Len() != 0 || h.Get("Grpc-Status") != status || h.Get("Grpc-Message") != "50 %25 of %C3%A9" || !strings.HasPrefix(kind, h.Get("Content-Type")) {
				t.Errorf("%s %s: %d %v %q", kind, code, rec.Code, h, rec.Body)
			}
		}
	}
	old := httptest.NewRequest(http.MethodPost, "/", nil)
	old.Header.Set("Content-Type", "application/grpc")
	if problem.IsGRPC(old) {
		t.Error("gRPC over HTTP/1")
	}
	get := httptest.NewRequest(http.MethodGet, "/", nil)
	get.ProtoMajor = 2
	get.Header.Set("Content-Type", "application/grpc")
	if problem.IsGRPC(get) {
		t.Error("gRPC is POST")
	}
}

func TestWriteStatus(t *testing.T) {
	rec := httptest.NewRecorder()
	if err := problem.WriteStatus(rec, httptest.NewRequest(http.MethodGet, "/", nil), 502); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(rec.Body.String()); rec.Code != 502 || got != `{"type":"about:blank","title":"Bad Gateway","status":502}` {
		t.Errorf("%d %s", rec.Code, got)
	}
}
