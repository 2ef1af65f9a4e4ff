// A certified OpenID provider on 127.0.0.1, with a client that gets tokens for
// itself: JWTs for the resource urn:jwt, opaque ones for urn:opaque. Keys are
// new at every start. The client poster posts its secret, the client signer
// signs with the private part of a JWK. Usage: node provider.mjs PORT [JWK]
import { generateKeyPair, exportJWK } from 'jose'
import Provider from 'oidc-provider'

const port = Number(process.argv[2])
const issuer = `http://127.0.0.1:${port}`

const keys = []
for (const alg of ['RS256', 'PS256', 'ES256', 'EdDSA']) {
  const { privateKey } = await generateKeyPair(alg, { extractable: true })
  keys.push({ ...(await exportJWK(privateKey)), alg, use: 'sig', kid: `${alg}-${process.pid}` })
}

const machine = (id) => ({ client_id: id, grant_types: ['client_credentials'], redirect_uris: [], response_types: [] })

const provider = new Provider(issuer, {
  jwks: { keys },
  clients: [
    { ...machine('app'), client_secret: 'app-secret' },
    { client_id: 'gateway', client_secret: 'gateway secret: %&+', grant_types: [], redirect_uris: [], response_types: [] },
    { ...machine('poster'), client_secret: 'poster-secret', token_endpoint_auth_method: 'client_secret_post' },
    ...(process.argv[3] ? [{ ...machine('signer'), token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [JSON.parse(process.argv[3])] } }] : []),
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
