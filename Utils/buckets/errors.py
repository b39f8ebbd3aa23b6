"""What the client of Cloud Storage raises, and what the user can do about it."""

import requests
import urllib3
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth import exceptions as auth_errors
from google.cloud.storage.exceptions import DataCorruption

from Utils.errors import Unreachable, UserError

CLIENT_ERRORS = (
    GoogleAPICallError,
    RetryError,
    DataCorruption,
    auth_errors.GoogleAuthError,
    requests.RequestException,
    urllib3.exceptions.HTTPError,  # of downloads, which requests leaves as they are
)
"""All that the client raises of what happens on the way."""

_REFUSED = (auth_errors.RefreshError, auth_errors.InvalidOperation)


class Superseded(UserError):
    """An object is not as this process left it: another one writes it."""


def is_transient(error: Exception, codes: frozenset[int]) -> bool:
    """Whether to try again; ``codes`` are the statuses of which that may be hoped."""
    if isinstance(error, GoogleAPICallError):
        return error.code in codes
    if isinstance(error, auth_errors.GoogleAuthError):
        return isinstance(error, auth_errors.TransportError)
    return True


def explained(error: Exception, bucket: str, name: str) -> UserError:
    """What to tell the user.

    Args:
        error: of the client.
        bucket: the bucket's name.
        name: the object's, or the beginning of several.
    """
    reason = " ".join(str(error).split())
    if "Caused by " in reason:  # requests tells the address again, and again the reason
        reason = reason.rpartition("Caused by ")[2].partition("(")[2].strip("()\"'")
    reason = reason[:300]
    code = getattr(error, "code", None)
    log_in = "'gcloud auth application-default login', or set GOOGLE_APPLICATION_CREDENTIALS"
    if code == 412:
        return Superseded(
            f"gs://{bucket}/{name} was changed by another process; only one may write a run: stop "
            "it, or choose another --expid"
        )
    if code == 401 or isinstance(error, _REFUSED):
        return Unreachable(
            f"gs://{bucket}: the Google credentials were refused ({reason}); run {log_in}"
        )
    if isinstance(error, auth_errors.DefaultCredentialsError):
        return Unreachable(f"gs://{bucket}: there are no Google credentials; run {log_in}")
    if code == 403:
        return Unreachable(
            f"gs://{bucket}/{name}: access denied ({reason}); give these credentials the role "
            "roles/storage.objectUser on the bucket"
        )
    if code == 404:
        return Unreachable(
            f"gs://{bucket}: there is no such bucket; mend --save-dir, or create it with "
            f"'gcloud storage buckets create gs://{bucket}'"
        )
    if code == 429:
        return Unreachable(
            f"gs://{bucket}: too many requests, or a quota is used up ({reason}); wait or "
            "raise it, and run the same command again"
        )
    return Unreachable(
        f"gs://{bucket} does not answer as it should ({reason}); mend the connection and "
        "run the same command again"
    )
