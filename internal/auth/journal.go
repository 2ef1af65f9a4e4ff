package auth

import (
	"encoding/hex"
	"strings"
)

// Epoch is the random number of one unbroken history of a store. A store that
// went back in time gets a new one.
type Epoch [16]byte

// String returns the epoch in hex.
func (e Epoch) String() string { return hex.EncodeToString(e[:]) }

// RowID is the random id of a journal row. Sequence numbers can repeat after
// a restore, row ids cannot.
type RowID [16]byte

// String returns the id in hex.
func (r RowID) String() string { return hex.EncodeToString(r[:]) }

// Point is a place in a store's history: what a load was read at.
type Point struct {
	Epoch Epoch
	Seq   int64
	Row   RowID
}

// ParentKind says what several credentials have in common.
type ParentKind string

// The kinds of parents.
const (
	ParentOwner  ParentKind = "owner"
	ParentClient ParentKind = "client"
	ParentIssuer ParentKind = "issuer"
	// A subject and one token of an issuer; named by PartOf.
	ParentSubject ParentKind = "subject"
	ParentToken   ParentKind = "token"
	// A key of ours, of the tokens that were exchanged for it.
	ParentKey ParentKind = "key"
)

// Parent names something whose change concerns all its credentials.
// The zero Parent names nothing.
type Parent struct {
	Kind ParentKind
	Name string
}

// Parents are the things an identity depends on; unused ones are zero.
type Parents [4]Parent

// PartOf names what an issuer calls name. Names of issuers have no colon.
func PartOf(issuer, name string) string { return issuer + ":" + name }

// ClientSubject is the subject of a client that speaks for itself. Names of
// owners have no colon, so none can equal it (RFC 9700, 4.15).
func ClientSubject(clientID string) string { return clientSubject + clientID }

const clientSubject = "client:"

// MetaRoots is the name of the metadata that says what else than its client or
// its subject a token of our own hangs on: values of RootOf, two at most. No
// operator can give metadata such a name.
const MetaRoots = ":roots"

// RootOf is a parent in the form that metadata keeps it in.
func RootOf(kind ParentKind, name string) string { return string(kind) + ":" + name }

// ParentsOf returns what the identity depends on. For keys, and tokens that
// were exchanged for one, the subject is the owner's name.
func ParentsOf(id *Identity) Parents {
	var p Parents
	if id.OfToken() {
		subject := id.Subject
		if !strings.HasPrefix(subject, PartOf(id.Issuer, "")) {
			subject = PartOf(id.Issuer, subject)
		}
		p[0] = Parent{ParentSubject, subject}
		p[1] = Parent{ParentToken, PartOf(id.Issuer, id.CredentialID)}
		p[2] = Parent{ParentIssuer, id.Issuer}
		return p
	}
	ofOwner := id.Method == MethodAPIKey || id.Method == MethodAccessToken && !strings.HasPrefix(id.Subject, clientSubject)
	if ofOwner && id.Subject != "" {
		p[0] = Parent{ParentOwner, id.Subject}
	}
	if id.ClientID != "" {
		p[1] = Parent{ParentClient, id.ClientID}
	}
	if id.Method == MethodAPIKey { // it has no root
		return p
	}
	for i, root := range id.MetaValues(MetaRoots) {
		if kind, name, ok := strings.Cut(root, ":"); ok {
			p[2+i] = Parent{ParentKind(kind), name}
		}
	}
	return p
}

// Change is one row of the journal: something that can make a cached verdict
// wrong.
type Change struct {
	Seq          int64
	Row          RowID
	At           int64 // unix milliseconds, by the writer's clock
	Kind         string
	Fingerprints []Fingerprint
	Parent       Parent
}
