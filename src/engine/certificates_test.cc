#include "engine/certificates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <cstdio>
#include <memory>

#include "net/client.h"
#include "net/server.h"
#include "net/tls.h"
#include "testing/certificates.h"

namespace sluice::engine {
namespace {

using ::testing::HasSubstr;

class CertificatesTest : public ::testing::Test {
 protected:
  CertificatesTest() : options_(engine_option_table().defaults()) {
    files_.make_authority("ca");
    files_.make("server", "ca", "127.0.0.1");
    options_.ssl_certfile = files_.path("server.pem");
    options_.ssl_keyfile = files_.path("server.key");
  }

  // NAME.key once more as NAME.locked, which needs a password.
  void lock(const std::string& name, const std::string& password) const {
    const auto close = [](std::FILE* file) { std::fclose(file); };
    const std::unique_ptr<std::FILE, decltype(close)> from(std::fopen(files_.path(name + ".key").c_str(), "r"), close),
        to(std::fopen(files_.path(name + ".locked").c_str(), "w"), close);
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
        PEM_read_PrivateKey(from.get(), nullptr, nullptr, nullptr), EVP_PKEY_free);
    ASSERT_NE(key, nullptr);
    ASSERT_EQ(PEM_write_PKCS8PrivateKey(to.get(), key.get(), EVP_aes_256_cbc(), password.data(),
                                        static_cast<int>(password.size()), nullptr, nullptr),
              1);
  }

  // What a client that trusts "ca" gets, and that has a certificate of this name, if any; 0: no answer.
  int status(const std::string& own = "") {
    auto loaded = load_certificate(options_);
    EXPECT_TRUE(loaded.ok()) << loaded.error().message;
    net::Server server(loops_, net::ServerOptions{.tls = *loaded}, [](net::ServerExchange& exchange) -> net::Task<> {
      net::Response response{.status = 204, .headers = {}, .body = ""};
      (void)co_await exchange.respond(std::move(response));
    });
    const uint16_t port = server.listen("127.0.0.1", 0).value();
    net::TlsFiles trust{.authorities = {files_.path("ca.pem")}};
    if (!own.empty()) {
      trust.certificate = files_.path(own + ".pem");
      trust.key = files_.path(own + ".key");
    }
    const auto answer =
        net::blocking_fetch(net::parse_url(fmt::format("https://127.0.0.1:{}", port)).value(), "GET", "/", {}, "", {},
                            net::ClientOptions{.tls = net::TlsContext::load(std::move(trust)).value()});
    return answer.ok() ? answer->status : 0;
  }
  std::string why_not() {
    const auto loaded = load_certificate(options_);
    if (loaded.ok()) return "it was loaded";
    EXPECT_EQ(loaded.error().code, ErrorCode::kBadOption);
    return loaded.error().message;
  }

  testing::CertificateFolder files_;
  EngineOptions options_;
  net::LoopGroup loops_{1, "test"};
};

TEST_F(CertificatesTest, WithoutTheFlagsThereIsNone) {
  const auto loaded = load_certificate(engine_option_table().defaults());
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(*loaded, nullptr);
}

TEST_F(CertificatesTest, ClientsThatTrustTheAuthorityAreServed) { EXPECT_EQ(status(), 204); }

TEST_F(CertificatesTest, AKeyMayHaveAPassword) {
  lock("server", "open sesame");
  options_.ssl_keyfile = files_.path("server.locked");
  EXPECT_THAT(why_not(), HasSubstr("server.locked")) << "it has not been told the password";
  options_.ssl_keyfile_password = "sesame";
  EXPECT_THAT(why_not(), HasSubstr("server.locked"));
  options_.ssl_keyfile_password = "open sesame";
  EXPECT_EQ(status(), 204);
}

TEST_F(CertificatesTest, WithAuthoritiesClientsNeedACertificateOfOneOfThem) {
  files_.make_authority("other");
  files_.make("friend", "ca", "friend");
  files_.make("stranger", "other", "stranger");
  options_.ssl_ca_certs = files_.path("ca.pem");
  EXPECT_EQ(status("friend"), 204);
  EXPECT_EQ(status("stranger"), 0);
  EXPECT_EQ(status(), 0);
}

TEST_F(CertificatesTest, WhatCannotBeReadIsNamed) {
  options_.ssl_certfile = files_.path("none.pem");
  EXPECT_THAT(why_not(), HasSubstr("none.pem"));
  EXPECT_THAT(why_not(), HasSubstr("--ssl-certfile"));
}

TEST_F(CertificatesTest, FlagsThatNeedEachOtherAreHeldTo) {
  options_.model_path = "tiny";
  EXPECT_TRUE(check_engine_options(options_).ok());
  options_.ssl_keyfile.reset();
  EXPECT_THAT(check_engine_options(options_).error().message, HasSubstr("--ssl-certfile and --ssl-keyfile"));
  options_.ssl_certfile.reset();
  options_.ssl_ca_certs = "ca.pem";
  EXPECT_THAT(check_engine_options(options_).error().message, HasSubstr("--ssl-ca-certs need --ssl-certfile"));
}

}  // namespace
}  // namespace sluice::engine
