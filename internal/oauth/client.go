package oauth

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

const (
	maxClientID  = 128
	maxBasic     = 1024
	maxAssertion = 8 << 10
)

// Ways to prove to be a client, as metadata calls them (RFC 8414, 2).
const (
	ClientSecretBasic = "client_secret_basic"
	ClientSecretPost  = "client_secret_post"
	PrivateKeyJWT     = "private_key_jwt"
)

// presented is what a request says of its client, before anything is checked.
type presented struct {
	way    string // "": it says nothing that could prove anything
	id     string
	secret string
	token  *jwt.Token // of a client assertion
}

// proof is a client that proved to be who it says.
type proof struct {
	client    *auth.Identity // nil: there was none
	assertion *Issue         // how it did, if by an assertion that is good once
}

// readClient finds the one way that a request proves its client in (RFC 6749,
// 2.3: not more than one).
func readClient(r *http.Request, f form) (presented, *Failure) {
	headers := r.Header["Authorization"]
	_, asserts := f["client_assertion"]
	if _, typed := f["client_assertion_type"]; typed {
		asserts = true
	}
	_, posts := f["client_secret"]
	ways := 0
	for _, used := range []bool{len(headers) > 0, posts, asserts} {
		if used {
			ways++
		}
	}
	switch {
	case ways > 1 || len(headers) > 1:
		return presented{}, bad(invalidRequest, "more than one way to authenticate the client")
	case len(headers) == 1:
		return readBasic(headers[0], f.get("client_id"))
	case posts:
		p := presented{way: ClientSecretPost, id: f.get("client_id"), secret: f.get("client_secret")}
		if p.id == "" {
			return p, noClient("no client_id")
		}
		return p, checkID(p.id)
	case asserts:
		return readAssertion(f)
	}
	return presented{id: f.get("client_id")}, nil
}

// readBasic is RFC 6749, 2.3.1: both parts are form-encoded before they are
// joined.
func readBasic(header, claimed string) (presented, *Failure) {
	scheme, rest, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return presented{}, noClient("another scheme than Basic")
	}
	rest = strings.TrimLeft(rest, " ")
	if len(rest) > maxBasic {
		return presented{}, noClient("a Basic header that is too long")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(rest)
	if err != nil {
		return presented{}, noClient("Basic without base64")
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if !ok {
		return presented{}, noClient("Basic without a colon")
	}
	p := presented{way: ClientSecretBasic}
	var err1, err2 error
	p.id, err1 = url.QueryUnescape(user)
	p.secret, err2 = url.QueryUnescape(password)
	if err1 != nil || err2 != nil || p.id == "" || p.secret == "" || !plainText(p.id) || !plainText(p.secret) {
		return presented{}, noClient("Basic that is not form-encoded, or empty")
	}
	if claimed != "" && claimed != p.id {
		return presented{}, bad(invalidRequest, "client_id is another one than that of the Authorization header")
	}
	return p, checkID(p.id)
}

func checkID(id string) *Failure {
	if len(id) > maxClientID {
		return noClient("a client_id that is too long")
	}
	return nil
}

// authenticate lets a client prove to be who it says. A request that says
// nothing of a client has an empty proof.
func (s *Server) authenticate(ctx context.Context, r *http.Request, f form, c Caller) (proof, *Failure) {
	p, failure := readClient(r, f)
	if failure != nil || p.way == "" {
		return proof{}, failure
	}
	t := s.throttleOf(c, p.id)
	var got proof
	if p.way == PrivateKeyJWT {
		got, failure = s.checkAssertion(ctx, p, c, t)
	} else {
		got, failure = s.checkSecret(ctx, p)
	}
	if failure != nil && failure.Code == invalidClient {
		failure = t.failure(failure, s.now())
	}
	if failure != nil {
		return proof{}, failure
	}
	if failure := checkNetwork(got.client, c.Address); failure != nil {
		return proof{}, failure
	}
	return got, nil
}

// checkSecret looks for who has the secret, and only then whether that is who
// it says: whether there is such a client makes no difference to what is done.
// A secret whose tag is not ours costs no lookup.
func (s *Server) checkSecret(ctx context.Context, p presented) (proof, *Failure) {
	v := s.credentials.VerifySecret(ctx, p.secret, s.now())
	switch v.Outcome {
	case auth.Allow:
	case auth.Deny:
		return proof{}, noClient(v.Reason.String())
	default:
		return proof{}, unavailable(v.Cause)
	}
	if subtle.ConstantTimeCompare([]byte(v.Identity.ClientID), []byte(p.id)) != 1 {
		return proof{}, noClient("the secret of another client")
	}
	return proof{client: &v.Identity}, nil
}

// checkNetwork refuses a client that is bound to other networks.
func checkNetwork(client *auth.Identity, address netip.Addr) *Failure {
	if auth.InNetworks(client.Networks, address) {
		return nil
	}
	f := bad(unauthorizedClient, "the client may not be used from this address")
	f.ClientID, f.Reason = client.ClientID, "network"
	return f
}

// hasForm reports whether a text has the form of what this gateway mints.
func hasForm(text string) bool {
	_, _, ok := secret.Parse(text)
	return ok
}
