"""URLs: the store, and the admin pages with the jobs."""

from django.contrib import admin
from django.urls import path
from store import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders/", views.order),
    path("orders/<str:result_id>/", views.shipped),
]
