#include "testing/certificates.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <boost/asio/ip/address.hpp>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "base/check.h"

namespace sluice::testing {
namespace {

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using File = std::unique_ptr<std::FILE, decltype(&std::fclose)>;

constexpr long kDay = 24 * 60 * 60;

File open_file(const std::string& path, const char* mode) {
  File file(std::fopen(path.c_str(), mode), &std::fclose);
  SLUICE_CHECK(file != nullptr, "cannot open {}", path);
  return file;
}

void extend(X509* certificate, X509* issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
  SLUICE_CHECK(extension != nullptr, "no extension {}", value);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

Certificate unsigned_certificate(const std::string& name, EVP_PKEY* key, int days) {
  static std::atomic<long> serial{1};
  Certificate certificate(X509_new(), &X509_free);
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), serial++);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -2 * kDay);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), days * kDay);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return certificate;
}

void save(const std::string& base, X509* certificate, EVP_PKEY* key) {
  {
    const File pem = open_file(base + ".pem.new", "w"), secret = open_file(base + ".key.new", "w");
    PEM_write_X509(pem.get(), certificate);
    PEM_write_PrivateKey(secret.get(), key, nullptr, nullptr, 0, nullptr, nullptr);
  }
  std::filesystem::rename(base + ".key.new", base + ".key");
  std::filesystem::rename(base + ".pem.new", base + ".pem");
}

}  // namespace

CertificateFolder::CertificateFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "certificates-XXXXXX").string();
  SLUICE_CHECK(::mkdtemp(pattern.data()) != nullptr, "no folder for certificates");
  folder_ = pattern;
}

CertificateFolder::~CertificateFolder() { std::filesystem::remove_all(folder_); }

void CertificateFolder::make_authority(const std::string& name) {
  const Key key(EVP_EC_gen("P-256"), &EVP_PKEY_free);
  const Certificate certificate = unsigned_certificate(name, key.get(), 10);
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate.get()));
  extend(certificate.get(), certificate.get(), NID_basic_constraints, "critical,CA:TRUE");
  X509_sign(certificate.get(), key.get(), EVP_sha256());
  save(path(name), certificate.get(), key.get());
}

void CertificateFolder::make(const std::string& name, const std::string& authority, const std::string& host, int days) {
  const File pem = open_file(path(authority + ".pem"), "r"), secret = open_file(path(authority + ".key"), "r");
  const Certificate issuer(PEM_read_X509(pem.get(), nullptr, nullptr, nullptr), &X509_free);
  const Key issuer_key(PEM_read_PrivateKey(secret.get(), nullptr, nullptr, nullptr), &EVP_PKEY_free);
  const Key key(EVP_EC_gen("P-256"), &EVP_PKEY_free);
  const Certificate certificate = unsigned_certificate(name, key.get(), days);
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer.get()));
  boost::system::error_code is_name;
  boost::asio::ip::make_address(host, is_name);
  extend(certificate.get(), issuer.get(), NID_subject_alt_name, (is_name ? "DNS:" : "IP:") + host);
  X509_sign(certificate.get(), issuer_key.get(), EVP_sha256());
  save(path(name), certificate.get(), key.get());
}

void CertificateFolder::write(const std::string& name, const std::string& text) {
  const File file = open_file(path(name + ".new"), "w");
  std::fwrite(text.data(), 1, text.size(), file.get());
  std::fflush(file.get());
  std::filesystem::rename(path(name + ".new"), path(name));
}

}  // namespace sluice::testing
