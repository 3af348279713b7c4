terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.19, < 9"
    }
    # For one resource: the identity of a Google service, which is in this provider only.
    google-beta = {
      source  = "hashicorp/google-beta"
      version = ">= 7.19, < 9"
    }
  }
}
