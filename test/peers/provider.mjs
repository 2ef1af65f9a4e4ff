// A certified OpenID provider on 127.0.0.1, with a client that gets tokens for
// itself: JWTs for the resource urn:jwt, opaque ones for urn:opaque. Keys are
// new at every start. Usage: node provider.mjs PORT
import { generateKeyPair, exportJWK } from 'jose'
import Provider from 'oidc-provider'

const port = Number(process.argv[2])
const issuer = `http://127.0.0.1:${port}`

const keys = []
for (const alg of ['RS256', 'PS256', 'ES256', 'EdDSA']) {
  const { privateKey } = await generateKeyPair(alg, { extractable: true })
  keys.push({ ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `${alg}-${process.pid}` })
}

const provider = new Provider(issuer, {
  jwks: { keys },
  clients: [
    { client_id: 'app', client_secret: 'app-secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [] },
    { client_id: 'gateway', client_secret: 'gateway secret: %&+', grant_types: [], redirect_uris: [], response_types: [] },
  ],
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA'] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    revocation: { enabled: true, allowedPolicy: () => true },
    introspection: { enabled: true, allowedPolicy: (ctx, client) => client.clientId === 'gateway' },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo(ctx, resource) {
        const [, format, alg] = resource.split(':')
        return {
          scope: 'orders:read orders:write',
          audience: 'https://api.example.com',
          accessTokenTTL: 600,
          accessTokenFormat: format,
          jwt: format === 'jwt' ? { sign: { alg: alg || 'RS256' } } : undefined,
        }
      },
    },
  },
})
provider.listen(port, '127.0.0.1', () => console.log(issuer))
