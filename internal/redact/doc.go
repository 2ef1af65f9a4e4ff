// Package redact finds credentials where they must not be: in request targets,
// under any spelling of a parameter's name, and by their shape. It reads the
// raw bytes of a target, never a parsed query, because parsers drop what they
// do not understand. It does no I/O and is safe for concurrent use.
package redact
