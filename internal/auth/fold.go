package auth

// AppendFolded appends a header name as CGI, WSGI and PHP fold it: letters in
// lower case, and '_' for all that is no letter or digit.
func AppendFolded(dst []byte, name string) []byte {
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'A' && c <= 'Z':
			c |= 0x20
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		default:
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}
